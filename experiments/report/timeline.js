"use strict";
// The timeline: one row per node with one lane per kind of work, on a canvas as wide as the page.

const COLORS = { compute: "--c0", fetch: "--c1", push: "--c3", apply: "--c2", dead: "--dead" };
const OTHERS = ["--c4", "--c5", "--c6", "--c7"];
const LANE = 7, GAP = 5, HEAD = 24, LEVELS = 5;

// Converts tracks to rows of lanes, with times in seconds. `reach[i]` is the latest end among blocks 0 to i.
function unpack(data) {
  const rows = data.nodes.map((name) => ({ name, lanes: [] }));
  for (const track of data.tracks) {
    const size = track.blocks.length / 2;
    const start = new Float64Array(size), end = new Float64Array(size), reach = new Float64Array(size);
    let at = 0, latest = 0;
    for (let i = 0; i < size; i++) {
      at += track.blocks[2 * i];
      start[i] = at * data.tick_s;
      end[i] = (at + track.blocks[2 * i + 1]) * data.tick_s;
      reach[i] = latest = Math.max(latest, end[i]);
    }
    rows[track.node].lanes.push({ kind: data.kinds[track.kind], start, end, reach, counts: track.counts });
  }
  rows.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  let top = 0;
  for (const row of rows) {
    row.top = top;
    row.height = Math.max(15, row.lanes.length * LANE) + GAP;
    top += row.height;
  }
  return { rows, height: top, begin: 0, end: data.end_s, data };
}

// The first index whose value is at least `value`, by bisection; `values` must not decrease.
function firstAt(values, value) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The share of each pixel's time in which a lane is busy.
function coverage(lane, view, width) {
  const cover = new Float32Array(width), scale = width / (view.end - view.begin);
  for (let i = firstAt(lane.reach, view.begin); i < lane.start.length && lane.start[i] <= view.end; i++) {
    const from = Math.max(0, (lane.start[i] - view.begin) * scale);
    const to = Math.min(width, Math.max((lane.end[i] - view.begin) * scale, from + 0.2)); // every block stays visible
    for (let pixel = Math.floor(from); pixel < to; pixel++) {
      cover[pixel] += Math.min(to, pixel + 1) - Math.max(from, pixel);
    }
  }
  return cover;
}

function drawLane(context, lane, view, left, width, top, color) {
  const cover = coverage(lane, view, width);
  const level = (pixel) => (cover[pixel] > 0 ? Math.ceil(Math.min(1, cover[pixel]) * LEVELS - 1e-3) : 0);
  context.fillStyle = color;
  for (let pixel = 0; pixel < width; ) {
    const begin = pixel, now = level(pixel);
    while (pixel < width && level(pixel) === now) pixel++;
    if (!now) continue;
    context.globalAlpha = Math.max(0.3, now / LEVELS);
    context.fillRect(left + begin, top, pixel - begin, LANE - 1);
  }
  context.globalAlpha = 1;
}

function seconds(value, step) {
  const [unit, factor] = step >= 0.1 ? ["s", 1] : step >= 1e-4 ? ["ms", 1e3] : ["µs", 1e6];
  const digits = Math.max(0, -Math.floor(Math.log10(step * factor) + 1e-9));
  return `${(value * factor).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${unit}`;
}

const lasting = (value) => seconds(value, Math.max(value, 1e-9) / 100);

function timeline(host, runs) {
  const canvas = html("canvas", { tabindex: 0, "aria-label": "timeline of spans" });
  const space = html("div"), scroller = html("div", { class: "rows" }, space);
  const choose = html("select", { "aria-label": "run" }, ...runs.map((run, i) => html("option", { value: i }, run.label)));
  const tools = html("div", { class: "tools" }), legend = html("div", { class: "legend" });
  const said = html("p", { class: "soft" });
  const frame = html("figure", { class: "wide", id: "timeline" }, html("h3", {}, "Timeline: who did what when"), tools, legend, scroller,
    html("figcaption", {}, "Each row is a node, and each lane in it a kind of work. Where a block is pale, the node was busy for part of that time. "
      + "Zoom with the wheel or + and −, drag to move, and point at a block for details. Gaps in a row show where a node waits."), said);
  let model, view, left, colors, pending = false;
  space.append(canvas);
  if (runs.length > 1) tools.append(choose);
  for (const [name, does] of [["+", () => zoom(0.5)], ["−", () => zoom(2)], ["whole run", whole]]) {
    const button = html("button", { type: "button" }, name);
    button.addEventListener("click", does);
    tools.append(button);
  }
  host.append(frame);

  function show() {
    const data = runs[Number(choose.value)].timeline;
    model = unpack(data);
    said.textContent = data.said;
    const others = data.kinds.filter((kind) => !COLORS[kind]);
    const name = (kind) => COLORS[kind] || OTHERS[others.indexOf(kind) % OTHERS.length];
    const style = getComputedStyle(document.documentElement);
    colors = Object.fromEntries(data.kinds.map((kind) => [kind, style.getPropertyValue(name(kind)).trim()]));
    colors.ink = style.getPropertyValue("--ink"); colors.soft = style.getPropertyValue("--soft"); colors.grid = style.getPropertyValue("--grid");
    legend.replaceChildren(...data.kinds.map((kind) => html("span", {}, html("i", { class: "swatch", style: `background: var(${name(kind)})` }), kind)));
    whole();
  }

  function whole() { view = { begin: model.begin, end: model.end }; redraw(); }

  function zoom(factor, at = 0.5) {
    const moment = view.begin + at * (view.end - view.begin), all = model.end - model.begin;
    const span = Math.min(all, Math.max(all * 1e-6, (view.end - view.begin) * factor));
    view.begin = moment - at * span; view.end = view.begin + span;
    inside();
  }

  function inside() {
    const shift = Math.max(0, model.begin - view.begin) - Math.max(0, view.end - model.end);
    view.begin += shift; view.end += shift;
    redraw();
  }

  function redraw() {
    if (!pending) requestAnimationFrame(draw);
    pending = true;
  }

  function draw() {
    pending = false;
    const width = scroller.clientWidth, ratio = devicePixelRatio || 1;
    const height = Math.min(model.height + HEAD + 4, Math.max(180, innerHeight * 0.7));
    space.style.height = `${model.height + HEAD + 4}px`;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d"), begin = performance.now();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "12px system-ui, sans-serif";
    left = Math.min(130, 14 + Math.max(...model.rows.map((row) => context.measureText(row.name).width)));
    grid(context, width, height);
    for (const row of model.rows) {
      const top = HEAD + row.top - scroller.scrollTop;
      if (top + row.height < HEAD || top > height) continue;
      row.lanes.forEach((lane, i) => drawLane(context, lane, view, left, Math.floor(width - left), top + i * LANE, colors[lane.kind]));
      context.clearRect(0, top, left, row.height);
      context.fillStyle = colors.soft;
      context.fillText(row.name, 6, top + row.height / 2 + 1, left - 10);
    }
    head(context, width);
    frame.dataset.frameMs = (performance.now() - begin).toFixed(1);
  }

  const place = (moment, width) => left + ((moment - view.begin) / (view.end - view.begin)) * (width - left);

  function grid(context, width, height) {
    context.fillStyle = colors.grid;
    for (const tick of ticks(view.begin, view.end, (width - left) / 110)) context.fillRect(place(tick, width), HEAD, 1, height);
  }

  function head(context, width) {
    context.clearRect(0, 0, width, HEAD);
    context.fillStyle = colors.ink;
    const at = ticks(view.begin, view.end, (width - left) / 110), step = at.length > 1 ? at[1] - at[0] : view.end - view.begin;
    for (const tick of at) {
      const label = seconds(tick, step), x = place(tick, width) + 3;
      if (x + context.measureText(label).width < width) context.fillText(label, x, 15);
    }
  }

  function under(event) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const down = y - HEAD + scroller.scrollTop;
    const row = x >= left && y >= HEAD && model.rows.find((r) => down >= r.top && down < r.top + r.height);
    const lane = row && row.lanes[Math.floor((down - row.top) / LANE)];
    if (!lane) return null;
    const second = (view.end - view.begin) / (box.width - left), moment = view.begin + (x - left) * second;
    let best = null, least = 4 * second;
    for (let i = firstAt(lane.reach, moment - least); i < lane.start.length && lane.start[i] < moment + 4 * second; i++) {
      const away = Math.max(lane.start[i] - moment, moment - lane.end[i], 0);
      if (away < least || (away === 0 && least === 0)) { best = i; least = away; }
    }
    return best === null ? null : { row, lane, i: best };
  }

  function about({ row, lane, i }) {
    const count = lane.counts ? lane.counts[i] : 1;
    const lines = [`${row.name}: ${lane.kind}`, `from ${text6(lane.start[i])} s, for ${lasting(lane.end[i] - lane.start[i])}`];
    if (count > 1) lines.push(`${text(count)} spans, drawn as one block`);
    return lines;
  }

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(Math.exp(Math.sign(event.deltaY) * Math.min(0.5, Math.abs(event.deltaY) / 300)), Math.max(0, event.clientX - box.left - left) / (box.width - left));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) {
      const moved = (event.movementX / (canvas.clientWidth - left)) * (view.end - view.begin);
      view.begin -= moved; view.end -= moved;
      scroller.scrollTop -= event.movementY;
      tip(frame, []);
      inside();
    } else {
      const found = under(event);
      tip(frame, found ? about(found) : [], ...inFrame(event, frame));
    }
  });
  canvas.addEventListener("pointerleave", () => tip(frame, []));
  canvas.addEventListener("keydown", (event) => {
    const step = (view.end - view.begin) / 10;
    const does = { "+": () => zoom(0.5), "-": () => zoom(2), 0: whole,
      ArrowLeft: () => { view.begin -= step; view.end -= step; inside(); },
      ArrowRight: () => { view.begin += step; view.end += step; inside(); } }[event.key];
    if (does) { event.preventDefault(); does(); }
  });
  scroller.addEventListener("scroll", redraw);
  choose.addEventListener("change", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  drawings.push(() => (model ? redraw() : show()));
}

const text6 = (value) => value.toLocaleString("en", { maximumSignificantDigits: 7 });
