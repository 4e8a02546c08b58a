"use strict";
// Draws the report from the JSON beside it. Text from files goes in as text nodes and attributes only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  // Colours that stay apart for colour-blind readers; after the last they repeat with another dash.
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f52c7", "#6b7a00", "#777777"];
  const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
  const PR = 0, NPR = 1, NPR_AUC = 2, SR = 3;
  const hidden = new Set();
  const state = { attribute: -1, radar: SR, metric: SR, sort: { column: "mean", up: true }, search: "", challenge: -1, layer: true };

  const percent = (value) => (100 * value).toFixed(1);
  const colour = (index) => COLOURS[index % COLOURS.length];
  const dash = (index) => DASHES[Math.floor(index / COLOURS.length) % DASHES.length];
  const visible = () => data.trackers.map((tracker, index) => ({ tracker, index })).filter(({ index }) => !hidden.has(index));
  const $ = (id) => document.getElementById(id);

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "onclick" || key === "oninput" || key === "onchange") made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  function svg(name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const tip = element("div", { class: "tip", hidden: "" });
  document.body.append(tip);
  function withTip(node, text) {
    node.addEventListener("mousemove", (event) => {
      tip.textContent = text;
      tip.hidden = false;
      tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 350)}px`;
      tip.style.top = `${event.clientY + 14}px`;
    });
    node.addEventListener("mouseleave", () => { tip.hidden = true; });
    return node;
  }

  // A frame with ticks; returns the drawing and the two scales.
  function frame(width, height, xs, ys, labels, margin) {
    const { left, right, top, bottom } = margin;
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const x = (value) => left + ((value - xs.low) / (xs.high - xs.low)) * (width - left - right);
    const y = (value) => height - bottom - ((value - ys.low) / (ys.high - ys.low)) * (height - top - bottom);
    for (const tick of xs.ticks) {
      drawing.append(svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }));
      drawing.append(svg("text", { x: x(tick), y: height - bottom + 15, "text-anchor": "middle" }, String(+tick.toFixed(2))));
    }
    for (const tick of ys.ticks) {
      drawing.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
      drawing.append(svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(+tick.toFixed(2))));
    }
    drawing.append(svg("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }));
    drawing.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, labels.x));
    const middle = (top + height - bottom) / 2;
    drawing.append(svg("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, labels.y));
    return { drawing, x, y };
  }

  const range = (low, high, step) => Array.from({ length: Math.round((high - low) / step) + 1 }, (_, i) => low + i * step);

  const PLOTS = [
    { key: "success", id: "success", title: "Success", metric: SR, x: "overlap threshold", ticks: range(0, 1, 0.2), mark: null },
    { key: "precision", id: "precision", title: "Precision", metric: PR, x: "centre error threshold, pixels", ticks: range(0, 50, 10), mark: data.centre_px },
    { key: "normalised", id: "normalised", title: "Normalised precision", metric: NPR, x: "normalised centre error threshold", ticks: range(0, 0.5, 0.1), mark: 0.2 },
  ];

  function drawCurves() {
    for (const plot of PLOTS) {
      const host = $(plot.id);
      const axis = data.axes[plot.key];
      const high = axis[axis.length - 1];
      const { drawing, x, y } = frame(420, 300, { low: 0, high, ticks: plot.ticks }, { low: 0, high: 1, ticks: range(0, 1, 0.2) },
        { x: plot.x, y: "share of frames" }, { left: 46, right: 12, top: 8, bottom: 36 });
      if (plot.mark !== null) drawing.append(svg("line", { class: "mark", x1: x(plot.mark), x2: x(plot.mark), y1: y(0), y2: y(1) }));
      const value = (tracker) => (state.attribute < 0 ? tracker.overall : tracker.attributes[state.attribute])[plot.metric];
      for (const { tracker, index } of visible()) {
        const values = tracker.curves[state.attribute + 1][plot.key];
        const points = values.map((v, i) => `${x(axis[i]).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
        const line = svg("polyline", { class: "curve", points, stroke: colour(index), "stroke-dasharray": dash(index) });
        drawing.append(withTip(line, `${tracker.name}: ${data.metrics[plot.metric]} ${percent(value(tracker))}`));
      }
      const legend = element("ul", { class: "legend" });
      const order = data.trackers.map((tracker, index) => ({ tracker, index })).sort((a, b) => value(b.tracker) - value(a.tracker));
      for (const { tracker, index } of order) {
        const swatch = element("span", { class: "swatch" });
        swatch.style.borderTopColor = colour(index);
        swatch.style.borderTopStyle = dash(index) ? "dashed" : "solid";
        const toggle = () => { hidden.has(index) ? hidden.delete(index) : hidden.add(index); draw(); };
        legend.append(element("li", { class: hidden.has(index) ? "off" : "", onclick: toggle, title: "show or hide" }, swatch,
          element("span", { class: "name" }, tracker.name), element("span", { class: "value" }, percent(value(tracker)))));
      }
      const caption = element("figcaption", {}, `${plot.title} (${data.metrics[plot.metric]})`);
      host.replaceChildren(caption, drawing, legend);
    }
  }

  function drawRadar() {
    const host = $("radar");
    if (data.attributes.length < 3) {
      host.replaceChildren(element("p", { class: "soft" }, "No attributes: this data set has none, or their files are missing."));
      return;
    }
    const middle = 260, radius = 172;
    const drawing = svg("svg", { viewBox: "0 52 520 416", role: "img" });
    const shown = visible();
    const values = shown.flatMap(({ tracker }) => tracker.attributes.map((of) => of[state.radar]));
    const highest = Math.max(0.1, Math.ceil(10 * Math.max(0, ...values)) / 10);
    const place = (index, value) => {
      const angle = (2 * Math.PI * index) / data.attributes.length - Math.PI / 2;
      return [middle + Math.cos(angle) * radius * (value / highest), middle + Math.sin(angle) * radius * (value / highest)];
    };
    const ring = (value) => data.attributes.map((_, index) => place(index, value).map((v) => v.toFixed(1)).join(",")).join(" ");
    const step = highest > 0.5 ? 0.2 : 0.1;
    const rings = range(step, highest, step).filter((value) => value <= highest + 1e-9);
    for (const value of rings) drawing.append(svg("polygon", { class: "grid", points: ring(value) }));
    data.attributes.forEach((attribute, index) => {
      const [px, py] = place(index, highest);
      drawing.append(svg("line", { class: "grid", x1: middle, y1: middle, x2: px, y2: py }));
      const [tx, ty] = place(index, highest * 1.12);
      const anchor = Math.abs(tx - middle) < 12 ? "middle" : tx > middle ? "start" : "end";
      const label = svg("text", { class: "label", x: tx, y: ty + 4, "text-anchor": anchor }, `${attribute.name} (${attribute.n})`);
      const lines = shown.map(({ tracker }) => `${tracker.name}: ${percent(tracker.attributes[index][state.radar])}`);
      drawing.append(withTip(label, `${attribute.name}: ${attribute.n} sequences\n${lines.join("\n")}`));
    });
    for (const { tracker, index } of shown) {
      const points = tracker.attributes.map((of, i) => place(i, of[state.radar]).map((v) => v.toFixed(1)).join(",")).join(" ");
      const area = svg("polygon", { points, fill: colour(index), "fill-opacity": 0.07, stroke: colour(index), "stroke-width": 2, "stroke-dasharray": dash(index) });
      drawing.append(withTip(area, tracker.name));
    }
    for (const value of rings) {
      const label = svg("text", { class: "ring", x: middle + 4, y: middle - (radius * value) / highest + 12 }, `${Math.round(100 * value)}`);
      drawing.append(label);
    }
    host.replaceChildren(drawing);
  }

  function drawSpeed() {
    const host = $("speed");
    const own = visible().filter(({ tracker }) => tracker.fps !== null);
    const layer = state.layer ? data.published.filter((entry) => entry.fps !== null) : [];
    const without = data.trackers.filter((tracker) => tracker.fps === null).map((tracker) => tracker.name);
    const note = element("p", { class: "soft small" });
    if (without.length) note.textContent = `Not drawn, because there are no SEQUENCE_time.txt files: ${without.join(", ")}.`;
    if (!own.length && !layer.length) {
      host.replaceChildren(note);
      return;
    }
    const dots = [...own.map(({ tracker, index }) => ({ name: tracker.name, fps: tracker.fps, pr: tracker.overall[PR], index })),
      ...layer.map((entry) => ({ name: entry.name, fps: entry.fps, pr: entry.pr, about: entry.about }))];
    const fastest = Math.max(...dots.map((dot) => dot.fps)), slowest = Math.min(...dots.map((dot) => dot.fps));
    // Logarithmic: trackers differ by orders of magnitude.
    const decades = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
    const low = Math.max(...decades.filter((tick) => tick <= slowest * 0.9), 0.1);
    const high = Math.min(...decades.filter((tick) => tick >= fastest * 1.3), 10000);
    const ticks = decades.filter((tick) => tick >= low && tick <= high);
    const values = dots.map((dot) => 100 * dot.pr);
    const bottom = Math.max(0, 5 * Math.floor((Math.min(...values) - 2) / 5)), top = Math.min(100, 5 * Math.ceil((Math.max(...values) + 2) / 5));
    const step = top - bottom > 40 ? 10 : 5;
    const { drawing, x, y } = frame(520, 400, { low: Math.log10(low), high: Math.log10(high), ticks: [] },
      { low: bottom, high: top, ticks: range(bottom, top, step).filter((tick) => tick <= top) },
      { x: "frames per second (logarithmic)", y: `${data.metrics[PR]}, percent` }, { left: 46, right: 16, top: 10, bottom: 36 });
    for (const tick of ticks) {
      const at = x(Math.log10(tick));
      drawing.append(svg("line", { class: "grid", x1: at, x2: at, y1: y(bottom), y2: y(top) }));
      drawing.append(svg("text", { x: at, y: y(bottom) + 15, "text-anchor": "middle" }, String(tick)));
    }
    const taken = [];
    for (const dot of dots.sort((a, b) => b.pr - a.pr)) {
      const px = x(Math.log10(dot.fps)), py = y(100 * dot.pr);
      const mine = dot.index !== undefined;
      const mark = mine ? svg("circle", { cx: px, cy: py, r: 6, fill: colour(dot.index) }) : svg("circle", { class: "layer", cx: px, cy: py, r: 4.5 });
      drawing.append(withTip(mark, `${dot.name}: ${dot.fps.toFixed(1)} frames/s, ${data.metrics[PR]} ${percent(dot.pr)}${dot.about ? `\n${dot.about}` : ""}`));
      // The label goes to the first side where it meets no other.
      const length = 6.2 * dot.name.length;
      const places = [[px + 9, py + 4, "start"], [px - 9, py + 4, "end"], [px, py - 9, "middle"], [px, py + 17, "middle"]];
      const boxOf = ([tx, ty, anchor]) => {
        const left = anchor === "start" ? tx : anchor === "end" ? tx - length : tx - length / 2;
        return [left, ty - 10, left + length, ty + 2];
      };
      const free = (box) => box[0] > 40 && box[2] < 512 && taken.every((b) => box[2] < b[0] || box[0] > b[2] || box[3] < b[1] || box[1] > b[3]);
      const chosen = places.find((place) => free(boxOf(place))) || (mine ? places[0] : null);
      taken.push([px - 6, py - 6, px + 6, py + 6]);
      if (chosen) {
        taken.push(boxOf(chosen));
        drawing.append(svg("text", { class: mine ? "label" : "layer-label", x: chosen[0], y: chosen[1], "text-anchor": chosen[2] }, dot.name));
      }
    }
    host.replaceChildren(drawing, note);
  }

  const shade = (value) => `color-mix(in srgb, ${value < 0.5 ? "#d55e00" : "#009e73"} ${Math.round(Math.abs(value - 0.5) * 60)}%, transparent)`;

  function drawSequences() {
    const shown = visible();
    const rows = data.sequences.map((sequence, index) => {
      const values = shown.map(({ tracker }) => (tracker.sequences[index] === null ? null : tracker.sequences[index][state.metric]));
      const known = values.filter((value) => value !== null);
      const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
      return { sequence, values, mean };
    }).filter(({ sequence }) => sequence.name.toLowerCase().includes(state.search.toLowerCase()) &&
      (state.challenge < 0 || sequence.attributes.includes(state.challenge)));
    const key = (row) => {
      const column = state.sort.column;
      if (column === "name") return row.sequence.name;
      if (column === "frames") return row.sequence.frames;
      if (column === "mean") return row.mean;
      return row.values[shown.findIndex(({ index }) => index === column)];
    };
    rows.sort((a, b) => {
      const p = key(a), q = key(b);
      if (p === q) return a.sequence.name < b.sequence.name ? -1 : 1;
      if (p === null || p === undefined) return -1;  // a missing result is the worst
      if (q === null || q === undefined) return 1;
      return (p < q ? -1 : 1) * (state.sort.up ? 1 : -1);
    });
    const heading = (label, column, text) => {
      const sorted = state.sort.column === column;
      const cell = element("th", { class: text ? "text" : "", "aria-sort": sorted ? (state.sort.up ? "ascending" : "descending") : "none" });
      cell.append(element("button", { onclick: () => {
        state.sort = { column, up: sorted ? !state.sort.up : true };
        drawSequences();
      } }, label));
      return cell;
    };
    const head = element("tr", {}, heading("sequence", "name", true), heading("frames", "frames"),
      element("th", { class: "text" }, "attributes"), heading("mean", "mean"), ...shown.map(({ tracker, index }) => heading(tracker.name, index)));
    const body = rows.map(({ sequence, values, mean }) => {
      const best = Math.max(...values.filter((value) => value !== null));
      const line = element("tr", {}, element("td", { class: "name" }, sequence.name), element("td", {}, String(sequence.frames)),
        element("td", { class: "text small soft" }, sequence.attributes.map((a) => data.attributes[a].name).join(" ")),
        element("td", {}, mean === null ? "–" : percent(mean)));
      for (const value of values) {
        const cell = element("td", value === null ? { class: "missing", title: "no usable result" } : value === best && shown.length > 1 ? { class: "best" } : {},
          value === null ? "missing" : percent(value));
        if (value !== null) cell.style.background = shade(value);
        line.append(cell);
      }
      return line;
    });
    $("count").textContent = `${rows.length} of ${data.sequences.length} sequences`;
    $("sequences").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  }

  function choice(id, options, chosen, change) {
    const list = element("select", { id: `${id}-select`, onchange: (event) => { change(Number(event.target.value)); draw(); } });
    for (const [value, label] of options) {
      const option = element("option", { value: String(value) }, label);
      option.selected = value === chosen;
      list.append(option);
    }
    $(id).append(list);
  }

  function draw() {
    drawCurves();
    drawRadar();
    drawSpeed();
    drawSequences();
  }

  const attributes = data.attributes.map((attribute, index) => [index, `${attribute.name} (${attribute.n})`]);
  const metrics = data.metrics.map((name, index) => [index, name]);
  choice("choose-attribute", [[-1, `all ${data.sequences.length} sequences`], ...attributes], -1, (value) => { state.attribute = value; });
  choice("choose-radar", metrics, SR, (value) => { state.radar = value; });
  choice("choose-metric", metrics, SR, (value) => { state.metric = value; });
  choice("choose-challenge", [[-1, "any"], ...attributes], -1, (value) => { state.challenge = value; });
  $("search").oninput = (event) => { state.search = event.target.value; drawSequences(); };
  $("layer").onchange = (event) => {
    state.layer = event.target.checked;
    for (const row of document.querySelectorAll("tr.published")) row.hidden = !state.layer;
    drawSpeed();
  };
  for (const line of document.querySelectorAll(".layer-line")) line.hidden = !data.published.length;
  draw();
  document.body.dataset.drawn = "yes";
})();
