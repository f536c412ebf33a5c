"use strict";
// Builds the page from the data that experiments/report/page.py embeds in it.

const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const several = data.runs.length > 1;
const color = (i) => `var(--c${i % 8})`;
const AXES = { time_s: "time", updates: "updates", examples: "examples" };
let axis = "time_s";

function section(title, said) {
  const charts = html("div", { class: "charts" });
  const place = html("section", {}, html("h2", {}, title), html("p", { class: "soft" }, said), charts);
  page.append(place);
  return charts;
}

function table(head, rows, numbers = true) {
  const cell = (tag, value, i) => html(tag, i && numbers ? { class: "number" } : {}, value ?? "–");
  return html("div", { class: "panel" }, html("table", {},
    html("thead", {}, html("tr", {}, ...head.map((value, i) => cell("th", value, i)))),
    html("tbody", {}, ...rows.map((row) => html("tr", {}, ...row.map((value, i) => cell(i ? "td" : "th", value, i)))))));
}

function head() {
  page.append(html("h1", {}, data.title));
  for (const run of data.runs) {
    const badge = html("span", { class: run.state === "finished" ? "badge" : "badge warn" }, run.state);
    page.append(html("p", {}, several ? html("b", {}, `${run.label}: `) : "", run.said, " ", badge));
  }
  for (const warning of data.warnings) page.append(html("p", { class: "warn" }, warning));
  const names = [...new Set(data.runs.flatMap((run) => run.numbers.map(([name]) => name)))];
  const of = (run, name) => run.numbers.find((number) => number[0] === name)?.[1];
  const numbers = table(["", ...data.runs.map((run) => (several ? run.label : "at the end"))],
    names.map((name) => [name, ...data.runs.map((run) => of(run, name))]));
  numbers.classList.add("fit");
  page.append(numbers);
}

function axisLabel() {
  const clocks = [...new Set(data.runs.map((run) => run.clock))];
  if (axis === "examples") return "training examples";
  return axis === "updates" ? "updates" : `${clocks.join(" or ")} seconds`;
}

function axisSwitch() {
  const label = ([name, said]) => {
    const input = html("input", { type: "radio", name: "axis", value: name, ...(name === axis ? { checked: "" } : {}) });
    input.addEventListener("change", () => { axis = name; redraw(); });
    return html("label", {}, input, said);
  };
  page.append(html("fieldset", { class: "switch" }, html("span", { class: "soft" }, "Horizontal axis of the curves:"), ...Object.entries(AXES).map(label)));
}

// Draws one chart of columns of the evaluations, each given as [column, name, dash].
function curves(host, title, note, columns, about) {
  const there = columns.filter(([column]) => data.runs.some((run) => (run.rows[column] || []).some(known)));
  if (!there.length) return;
  const one = (run, i, [column, name, dash], k) => ({
    name: [several ? run.label : "", there.length > 1 || !several ? name : ""].filter(Boolean).join(": "),
    color: several ? color(i) : color(k), dash: several ? dash : "", x: run.rows[axis], y: run.rows[column],
  });
  lines(host, { title, note }, () => ({
    ...about, xLabel: axisLabel(),
    series: data.runs.flatMap((run, i) => there.filter(([column]) => run.rows[column]).map((column, k) => one(run, i, column, k))),
  }));
}

function training() {
  const host = section("Training", "Measured by evaluating the shards' current parameters; evaluations take no virtual time.");
  curves(host, "Accuracy", "Higher is better. Hold-out examples are not used for training; a gap to the training set indicates overfitting.",
    [["test_accuracy", "hold-out set", ""], ["train_accuracy", "training set", "5 4"]], { yLabel: "examples classified correctly", yText: percent, top: 1 });
  curves(host, "Training loss", "Lower is better. Mean over the last mini-batch of each replica, at the parameters that the replica used for it.",
    [["train_loss", "training loss", ""]], { yLabel: "loss", log: true });
  curves(host, "Hold-out loss", "Lower is better. Computed on examples that are not used for training.", [["test_loss", "hold-out loss", ""]], { yLabel: "loss", log: true });
  curves(host, "Updates applied", "Updates that every shard has applied. A steeper curve is faster training; a flat part is a stall.", [["updates", "updates", ""]], { yLabel: "updates" });
}

function staleness() {
  const host = section("Staleness", "The age of a gradient when it is applied: the number of updates that a shard made between serving the parameters and applying the gradient computed at them. Every shard counts each push that it applies.");
  data.runs.forEach((run, i) => {
    const { bars, mean, said, note, predicted } = run.staleness, title = several ? `Staleness of pushes: ${run.label}` : "Staleness of pushes";
    if (bars.length) histogram(host, { title, note: `${said} ${note}` }, { bars, mean, predicted, color: color(several ? i : 0) });
    else host.append(html("figure", {}, html("h3", {}, title), html("figcaption", {}, `${note} ${said}`)));
  });
  curves(host, "Version skew of the shards", "Difference between the highest and the lowest version of a shard, at each evaluation. 0 means that all shards have applied the same number of pushes.",
    [["version_skew_updates", "version skew", ""]], { yLabel: "versions" });
}

function busy() {
  const host = section("Utilisation", "Share of time in which nodes and network cards were busy. Whatever is at 100 % limits the run; whatever is at 0 % is idle, or its work takes no time in this cluster model.");
  data.runs.forEach((run) => {
    const title = several ? `Busy share over time: ${run.label}` : "Busy share over time";
    const rows = run.busy.map((one) => {
      const fill = html("i");
      fill.style.width = `${Math.min(100, 100 * one.mean)}%`;
      const range = one.count > 1 ? `${share(one.least)} to ${share(one.most)}` : "–";
      return [one.name, html("div", { class: "meter" }, fill), share(one.mean), range];
    });
    if (run.busy.length) {
      lines(host, { title, note: run.busy_said }, () => ({
        xLabel: `${run.clock} seconds`, yLabel: "busy share", yText: percent, top: 1, end: run.end_s,
        series: run.busy.filter((one) => one.drawn).map((one, k) => ({ name: one.name, color: color(k), x: one.times_s, y: one.over_time })),
      }));
      const panel = table(["", "", "mean", "range"], rows);
      host.append(html("figure", { class: "busy" }, html("h3", {}, several ? `Total busy share: ${run.label}` : "Total busy share"), ...panel.children,
        html("figcaption", {}, "Mean over the nodes of a kind, and the range among them. A wide range means that some nodes work while others wait.")));
    } else host.append(html("figure", { class: "wide" }, html("h3", {}, title), html("figcaption", {}, run.busy_said)));
  });
}

function moved() {
  const host = section("Bytes moved", "Arrays sent between replicas and shards, each transfer counted once, as they would travel over a network. With threads, nothing is copied.");
  const most = Math.max(1, ...data.runs.flatMap((run) => run.bytes.map(([, value]) => value)));
  const rows = data.runs.flatMap((run, i) => run.bytes.map(([kind, value]) => {
    const fill = html("i");
    fill.style.width = `${(100 * value) / most}%`;
    fill.style.background = color(several ? i : 0);
    return [several ? `${run.label}: ${kind}` : kind, html("div", { class: "meter" }, fill), bytes(value)];
  }));
  host.append(html("figure", { id: "bytes" }, html("h3", {}, "Total bytes by kind"), ...table(["", "", "total"], rows).children,
    html("figcaption", {}, "Fetched: parameters sent to replicas. Pushed: gradients sent to shards. Less frequent fetches and pushes (larger n_fetch and n_push) move fewer bytes, and make gradients more stale.")));
  curves(host, "Bytes over time", "Cumulative bytes; a straight line is a steady load.",
    [["bytes_fetched", "fetched", ""], ["bytes_pushed", "pushed", "5 4"]], { yLabel: "bytes", yText: bytes });
}

function deaths() {
  const those = data.runs.filter((run) => run.deaths.length);
  if (!those.length) return;
  const host = section("Node failures", "Nodes that failed during the run, and how long each was down.");
  for (const run of those) {
    const rows = run.deaths.map(([node, at, gone]) => [node, `${text(at)} s`, gone === null ? "the rest of the run" : `${text(gone)} s`]);
    host.append(html("figure", { class: "wide" }, html("h3", {}, several ? run.label : "Failures"), ...table(["node", "failed at", "down for"], rows).children,
      html("figcaption", {}, run.deaths_said)));
  }
}

function configuration() {
  const { differ, equal, said } = data.configuration;
  page.append(html("h2", {}, "Configuration"), html("p", { class: "soft" }, said));
  if (differ.rows.length) page.append(table(differ.head, differ.rows, false));
  page.append(html("details", {}, html("summary", {}, `${equal.length} other fields`), table(["field", "value"], equal, false)));
  page.append(html("h2", {}, "Provenance"), table(["", ...data.runs.map((run) => run.label)], data.origin, false));
}

function redraw() { for (const draw of drawings) draw(); }

head();
axisSwitch();
training();
staleness();
busy();
moved();
const traced = data.runs.filter((run) => run.timeline);
timelineSection();
deaths();
configuration();
redraw();

function timelineSection() {
  const host = section("Timeline", traced.length < data.runs.length ? data.untraced : "Spans, in seconds of the run's clock.");
  if (traced.length) timeline(host, traced);
}

let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
document.documentElement.dataset.drawn = "all";
