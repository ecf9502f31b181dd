"use strict";
// How numbers, names and verdicts are written, and what opens below a row: its evidence, and its scales.
// Names come from the user's model: they are set as text, never as markup.
const page = (() => {
  const SVG = "http:" + "//www.w3.org/2000/svg"; // a name, not an address: nothing is loaded
  const ROW =
    "place name label kind verdict tone judged exponent half expected effect cause why remedy detail".split(" ");
  const KEY = Object.freeze(Object.fromEntries(ROW.map((name, position) => [name, position])));
  const data = JSON.parse(document.getElementById("data").textContent);

  function element(tag, className, ...content) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...content);
    return made;
  }

  // a name, with places to break a long one
  function nameOf(text) {
    const made = element("bdi", "");
    for (const part of text.match(/[^./]*[./]|[^./]+$/g) ?? []) made.append(part, element("wbr", ""));
    return made;
  }

  // m^-1 and n^0.94 with raised exponents, h_t with a lowered index
  function raised(text) {
    const parts = text.split(/\b([mn])\^(-?\d+(?:\.\d+)?)/); // text, base, exponent, text, ...
    return parts.map((part, index) => (index % 3 === 2 ? element("sup", "", minus(part)) : part));
  }

  function lowered(text) {
    return text.split(/_(\w)/).map((part, index) => (index % 2 ? element("sub", "", part) : part));
  }

  function minus(text) {
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
  }

  function signed(value) {
    const text = minus(value.toFixed(2));
    return value > 0 && Number(text) !== 0 ? `+${text}` : text;
  }

  function measured(value, half) {
    if (value === null) return "";
    return half === null ? signed(value) : `${signed(value)} ± ${half.toFixed(2)}`;
  }

  function scale(value) {
    if (typeof value !== "number") return value ?? "";
    if (value !== 0 && (value < 1e-3 || value >= 1e5)) return value.toExponential(2);
    return value < 1000 ? value.toPrecision(3) : value.toFixed(0);
  }

  function expected(value) {
    return value === null ? "" : minus(String(value));
  }

  // everything about a row that its cells leave out
  function detailOf(row) {
    const made = element("div", "inside");
    for (const text of [row[KEY.why], row[KEY.remedy]])
      if (text) made.append(element("p", "", ...raised(`${text[0].toUpperCase()}${text.slice(1)}.`)));
    const pair = element("div", "pair");
    if (row[KEY.kind] !== 0) pair.append(exponents(row));
    else (row[KEY.detail] ?? []).forEach((curve, index) => pair.append(...scales(row, curve, data.curves[index])));
    made.append(pair);
    return made;
  }

  function table(title, heads, lines) {
    const headings = heads.map((content, index) => {
      const th = element("th", index ? "number" : "", content);
      th.scope = "col";
      return th;
    });
    const body = lines.map(([first, ...rest]) => {
      const th = element("th", "", first);
      th.scope = "row";
      return element("tr", "", th, ...rest.map((content) => element("td", "number", content)));
    });
    const made = element("table", "", element("thead", "", element("tr", "", ...headings)), element("tbody", "", ...body));
    made.setAttribute("aria-label", title);
    return made;
  }

  function exponents(row) {
    const lines = row[KEY.detail].map(([what, value, half, target]) => [what, measured(value, half), expected(target)]);
    const title = `Exponents of the width, as ${data.kinds[row[KEY.kind]]}`;
    return element("div", "", element("h3", "", title), table(title, ["", "measured", "expected"], lines));
  }

  // one quantity of a layer: a chart, and the numbers by width and step with their slopes
  function scales(row, [values, slopes], title) {
    const { widths, steps } = data.grids[row[KEY.label]];
    const columns = steps.map((step, at) => {
      return { step, slope: slopes[at], own: values.slice(at * widths.length, (at + 1) * widths.length) };
    });
    const shown = columns.filter(({ own }) => own.some((value) => value !== null));
    if (!shown.length) return [];
    const lines = widths.map((width, at) => [String(width), ...shown.map(({ own }) => scale(own[at]))]);
    const heads = [data.axis, ...shown.map(({ step }) => `t = ${step}`)];
    const numbers = table(title, heads, [...lines, ["slope", ...shown.map(({ slope }) => slopeCell(slope))]]);
    numbers.className = "scales";
    return [element("div", "", element("h3", "", ...lowered(title)), chart(widths, shown), numbers)];
  }

  function slopeCell(slope) {
    if (!Array.isArray(slope)) return String(slope ?? "");
    const [value, half] = slope;
    return element("span", "", signed(value), ...(half === null ? [] : [element("small", "", `± ${half.toFixed(2)}`)]));
  }

  // scale against width on log2 axes, a line per step: early faint, late strong
  function chart(widths, columns) {
    const svg = document.createElementNS(SVG, "svg");
    const draw = (tag, attributes, text = "") => {
      const made = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      made.textContent = text;
      svg.append(made);
    };
    const height = (value) => (typeof value === "number" && value > 0 ? Math.log2(value) : null);
    const known = columns.flatMap(({ own }) => own.map(height)).filter((value) => value !== null);
    svg.setAttribute("viewBox", "0 0 300 150");
    svg.setAttribute("class", "chart");
    svg.setAttribute("aria-hidden", "true"); // the table below it says the same
    if (!known.length || widths.length < 2) return element("div", "");
    const slack = Math.max(0, 4 - (Math.max(...known) - Math.min(...known))) / 2; // a flat line must look flat
    const [low, high] = [Math.min(...known) - slack, Math.max(...known) + slack];
    const ends = [widths[0], widths[widths.length - 1]];
    const x = (width) => 52 + (190 * Math.log2(width / ends[0])) / Math.log2(ends[1] / ends[0]);
    const y = (value) => 10 + (110 * (high - value)) / (high - low);
    draw("path", { d: "M46 6V126H248", class: "axis" });
    for (const width of ends) draw("text", { x: x(width), y: 141, "text-anchor": "middle" }, String(width));
    for (const tick of [Math.ceil(low), Math.floor(high)])
      draw("text", { x: 42, y: y(tick) + 3, "text-anchor": "end" }, String(2 ** tick));
    columns.forEach(({ step, own }, index) => {
      const points = own.map((value, at) => [x(widths[at]), height(value)]).filter((point) => point[1] !== null);
      if (!points.length) return;
      const last = columns.length - 1;
      const line = points.map(([across, up]) => `${across.toFixed(1)},${y(up).toFixed(1)}`).join(" ");
      const opacity = last ? 0.3 + (0.7 * index) / last : 1;
      draw("polyline", { points: line, class: "curve", "stroke-opacity": opacity.toFixed(2) });
      const [across, up] = points[points.length - 1];
      if (index === 0 || index === last) draw("text", { x: across + 5, y: y(up) + 3 }, `t = ${step}`);
    });
    return svg;
  }

  return { KEY, data, element, nameOf, raised, measured, scale, expected, detailOf };
})();
