"use strict";
// Small SVG charts. Everything from the data is inserted as text, never as markup.

const drawings = []; // functions that redraw a chart at the current width

function html(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const text = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
const percent = (value) => `${text(100 * value)} %`;
const share = (value) => `${(100 * value).toFixed(1)} %`;

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = value < 1 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  return `${text(value / 1000 ** power)} ${units[power]}`;
}

function ticks(low, high, count) {
  const rough = Math.max((high - low) / count, 1e-12);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step + 0); // + 0 turns -0 into 0
  return found;
}

function decades(low, high) {
  const found = [];
  for (let e = Math.floor(low); e <= Math.ceil(high); e++) found.push(e);
  return found.filter((e) => e >= low && e <= high);
}

// A figure: a title, a legend, the element that `draw(width, frame)` returns, and a caption.
function figure(host, { title, note, legend = [], wide = false }, draw) {
  const frame = html("figure", wide ? { class: "wide" } : {}, html("h3", {}, title));
  const place = html("div");
  if (legend.length) frame.append(html("div", { class: "legend" }, ...legend.map(sample)));
  frame.append(place, html("figcaption", {}, note));
  host.append(frame);
  drawings.push(() => place.replaceChildren(draw(Math.max(240, place.clientWidth), frame)));
  return frame;
}

function sample({ name, color, dash, block }) {
  const mark = block
    ? svg("rect", { y: 2, width: 24, height: 8, fill: color, opacity: block })
    : svg("line", { x2: 26, y1: 6, y2: 6, stroke: color, "stroke-width": 2.5, "stroke-dasharray": dash || "" });
  return html("span", {}, svg("svg", { viewBox: "0 0 26 12", height: 12 }, mark), name);
}

function tip(frame, lines, x, y) {
  frame.querySelector(".tip")?.remove();
  if (!lines.length) return;
  const box = html("div", { class: "tip" }, lines.join("\n"));
  frame.append(box);
  const right = x + 16 + box.offsetWidth > frame.clientWidth;
  box.style.left = `${Math.max(0, right ? x - 12 - box.offsetWidth : x + 14)}px`;
  box.style.top = `${y}px`;
}

function inFrame(event, frame) {
  const box = frame.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// Draws the axes of a chart; also returns the functions x, y that map values to positions.
function axes(width, { xs, ys, xLabel, yLabel, xText = text, yText = text, log = false }) {
  const area = { left: 62, right: width - 10, top: 22, bottom: 218 };
  const x = (v) => area.left + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * (area.right - area.left);
  const y = (v) => area.bottom - (((log ? Math.log10(v) : v) - ys[0]) / (ys[1] - ys[0] || 1)) * (area.bottom - area.top);
  const picture = svg("svg", { viewBox: `0 0 ${width} 262`, height: 262, role: "img", "aria-label": yLabel });
  for (const tick of log ? decades(...ys).map((e) => 10 ** e) : ticks(...ys, 5)) {
    picture.append(svg("line", { x1: area.left, x2: area.right, y1: y(tick), y2: y(tick), stroke: "var(--grid)" }));
    picture.append(svg("text", { x: area.left - 7, y: y(tick) + 4, "text-anchor": "end" }, yText(tick)));
  }
  for (const tick of ticks(...xs, width / 110)) {
    picture.append(svg("line", { x1: x(tick), x2: x(tick), y1: area.bottom, y2: area.bottom + 4, stroke: "var(--soft)" }));
    picture.append(svg("text", { x: x(tick), y: area.bottom + 18, "text-anchor": "middle" }, xText(tick)));
  }
  picture.append(svg("line", { x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom, stroke: "var(--soft)" }));
  picture.append(svg("text", { x: 0, y: 10 }, yLabel));
  picture.append(svg("text", { x: area.right, y: 256, "text-anchor": "end" }, xLabel));
  return { picture, x, y, area };
}

const known = (value) => value !== null && Number.isFinite(value);

// A line chart; `spec()` returns {series: [{name, color, dash, x, y}], xLabel, yLabel, yText, log, top, end}.
function lines(host, about, spec) {
  const legend = spec().series;
  return figure(host, { ...about, legend: legend.length > 1 ? legend : [] }, (width, frame) => {
    const { series, xLabel, yLabel, yText = text, top, end = 0 } = spec();
    const values = series.flatMap((s) => s.y.filter(known));
    const places = series.flatMap((s) => s.x.filter((v, i) => known(v) && known(s.y[i])));
    if (!values.length) return html("p", { class: "soft" }, "No measurements yet.");
    const log = spec().log && Math.min(...values) > 0 && Math.max(...values) > 100 * Math.min(...values);
    const high = top ?? (Math.max(...values) || 1);
    const ys = log ? [Math.log10(Math.min(...values)), Math.log10(high)] : [Math.min(0, ...values), high];
    const xs = [Math.min(0, ...places), Math.max(end, ...places) || 1];
    const { picture, x, y, area } = axes(width, { xs, ys, xLabel, yLabel: log ? `${yLabel}, logarithmic` : yLabel, yText, log });
    for (const s of series) picture.append(line(s, x, y, log));
    const rule = svg("line", { y1: area.top, y2: area.bottom, stroke: "var(--soft)", visibility: "hidden" });
    picture.append(rule);
    picture.addEventListener("pointermove", (event) => {
      const [left, up] = inFrame(event, frame);
      const scale = width / picture.getBoundingClientRect().width;
      const at = nearest(places, (v) => Math.abs(x(v) - (event.clientX - picture.getBoundingClientRect().left) * scale));
      rule.setAttribute("x1", x(at)); rule.setAttribute("x2", x(at)); rule.setAttribute("visibility", "visible");
      const said = series.map((s) => [s, s.x.findIndex((v, i) => v === at && known(s.y[i]))]).filter(([, i]) => i >= 0);
      tip(frame, [`${text(at)} ${xLabel}`, ...said.map(([s, i]) => `${s.name}: ${yText(s.y[i])}`)], left, up);
    });
    picture.addEventListener("pointerleave", () => { rule.setAttribute("visibility", "hidden"); tip(frame, []); });
    return picture;
  });
}

function nearest(values, distance) {
  return values.reduce((best, value) => (distance(value) < distance(best) ? value : best), values[0]);
}

function line(s, x, y, log) {
  let path = "", pen = "M";
  s.y.forEach((value, i) => {
    const shown = known(value) && known(s.x[i]) && (!log || value > 0);
    if (shown) path += `${pen}${x(s.x[i]).toFixed(1)},${y(value).toFixed(1)}`;
    pen = shown ? "L" : "M";
  });
  const group = svg("g", { class: "series" });
  group.append(svg("path", { d: path, fill: "none", stroke: s.color, "stroke-width": 2, "stroke-dasharray": s.dash || "", "stroke-linejoin": "round" }));
  const single = s.y.filter(known).length === 1; // a line with a single point is invisible
  if (single) s.y.forEach((v, i) => known(v) && group.append(svg("circle", { cx: x(s.x[i]), cy: y(v), r: 3, fill: s.color })));
  return group;
}

// A histogram of bars {first, last, count, predicted}; the prediction is a line with dots.
function histogram(host, about, { bars, mean, color, predicted }) {
  const total = bars.reduce((sum, bar) => sum + bar.count, 0);
  const span = bars[0].last - bars[0].first + 1;
  const legend = [{ name: "measured", color, block: 0.6 }, { name: `measured mean ${text(mean)}`, color: "var(--soft)", dash: "2 3" }];
  if (predicted) legend.push({ name: "predicted distribution", color: "var(--ink)" });
  return figure(host, { ...about, legend }, (width, frame) => {
    const high = Math.max(...bars.map((bar) => Math.max(bar.count / total, bar.predicted ?? 0)));
    const { picture, x, y, area } = axes(width, {
      xs: [-0.5, bars.length * span - 0.5], ys: [0, high], yText: percent,
      xLabel: "staleness (updates)", yLabel: "share of pushes",
    });
    const name = (bar) => (bar.first === bar.last ? `${text(bar.first)}` : `${text(bar.first)} to ${text(bar.last)}`);
    const middle = (i) => i * span + (span - 1) / 2;
    const wide = x(span) - x(0);
    bars.forEach((bar, i) => picture.append(svg("rect", {
      class: "bar", x: x(i * span - 0.5) + wide * 0.06, width: wide * 0.88,
      y: y(bar.count / total), height: Math.max(0, area.bottom - y(bar.count / total)), fill: color, opacity: 0.6,
    })));
    picture.append(svg("line", { x1: x(mean), x2: x(mean), y1: area.top, y2: area.bottom, stroke: "var(--soft)", "stroke-width": 1.5, "stroke-dasharray": "2 3" }));
    if (predicted) {
      picture.append(line({ x: bars.map((_, i) => middle(i)), y: bars.map((bar) => bar.predicted), color: "var(--ink)" }, x, y));
      bars.forEach((bar, i) => picture.append(svg("circle", { cx: x(middle(i)), cy: y(bar.predicted), r: Math.min(3, wide / 3), fill: "var(--ink)" })));
    }
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      const at = ((event.clientX - box.left) * width) / box.width;
      const i = nearest(bars.map((_, k) => k), (k) => Math.abs(x(middle(k)) - at));
      const said = [`staleness ${name(bars[i])}`, `${text(bars[i].count)} pushes, ${percent(bars[i].count / total)}`];
      if (predicted) said.push(`predicted ${percent(bars[i].predicted)}`);
      tip(frame, said, ...inFrame(event, frame));
    });
    picture.addEventListener("pointerleave", () => tip(frame, []));
    return picture;
  });
}
