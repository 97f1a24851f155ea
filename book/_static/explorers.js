// Sliders, sorting and drawings for the outputs of thinkback_utils/pages/explorers.py.
// No library, no kernel, no network: every number is in the page. A page without such an output is left alone.
(() => {
  "use strict";

  const percent = (x) => (Number.isFinite(x) ? `${(100 * x).toFixed(1)} %` : "–");
  const plain = (x) => String(x).replace("-", "−");
  const scale = (from, to, a, b) => (x) => a + ((x - from) / (to - from)) * (b - a);
  const logarithmic = (from, to, a, b) => (x) => scale(Math.log(from), Math.log(to), a, b)(Math.log(x));
  const least = (values) => Math.min(...values);
  const most = (values) => Math.max(...values);

  /** A number of any size in few letters. */
  function short(x) {
    if (x === 0 || Math.abs(x) >= 1e-3) return plain(Number(x.toPrecision(4)));
    const [digits, exponent] = x.toExponential(1).split("e");
    const raised = exponent.replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
    return `${digits === "1.0" ? "" : `${plain(digits)} · `}10${raised}`;
  }

  // Controls and readouts

  const { html, svg, fit } = window.thinkback; // of _static/dom.js

  /** A node over its longest text, unseen: so much room it keeps, and what follows does not move, in any font. */
  const kept = (node, longest) =>
    html("span", { class: "tb-kept" }, node, html("span", { class: node.className, "aria-hidden": true }, longest));

  /** A labelled slider over `count` places; `say` puts a place into words, `longest` at most. */
  function slider(title, count, start, say, change, longest = "") {
    const shown = html("b");
    const input = html("input", { type: "range", min: 0, max: count - 1, value: start, oninput: change });
    return {
      node: html("label", { class: "tb-slider" }, html("span", {}, `${title} `, kept(shown, longest)), input),
      at: () => input.valueAsNumber,
      move: (place) => (input.value = place),
      among(places) {
        input.max = places - 1;
        input.disabled = places === 0;
      },
      name() {
        shown.textContent = say(input.valueAsNumber);
        input.setAttribute("aria-valuetext", shown.textContent);
      },
    };
  }

  function choice(title, names, change) {
    const select = html("select", { onchange: change }, ...names.map((name) => html("option", {}, name)));
    return {
      node: html("label", { class: "tb-choice" }, `${title} `, select),
      at: () => select.selectedIndex,
      move: (place) => (select.selectedIndex = place),
    };
  }

  /** A box to tick for each item's `shown`, with its color and its mark if it has them. */
  function boxes(name, items, changed) {
    const box = (item) => {
      const change = (event) => {
        item.shown = event.target.checked;
        changed();
      };
      const input = html("input", { type: "checkbox", onchange: change });
      input.checked = item.shown;
      return html("label", { style: item.color ? `--tb-here: ${item.color}` : "" }, input, item.mark ?? "", item.title);
    };
    return html("div", { class: "tb-boxes", role: "group", "aria-label": name }, ...items.map(box));
  }

  /** Numbers under their names, read aloud when they change. */
  function readout(about) {
    const values = Object.keys(about).map((name) => html("b", { "data-number": name }));
    const cells = Object.entries(about).map(([name, words], i) =>
      html("span", {}, html("span", {}, name), values[i], html("small", {}, words)),
    );
    const show = (numbers) => values.forEach((value, i) => (value.textContent = percent(numbers[i])));
    return { node: html("output", { class: "tb-readout" }, ...cells), show };
  }

  // Drawings: a shape has the colour of its `color`, or that of ink

  /** A drawing as wide as its place, so that letters keep their size; `draw(node, width)` returns it in words. */
  function chart(height, draw) {
    const node = svg("svg", { role: "img", height, "aria-label": "chart" });
    let width = 0;
    const redraw = () => {
      if (!width) return;
      node.replaceChildren();
      node.setAttribute("aria-label", draw(node, width));
      fit(node, width);
    };
    const watch = new ResizeObserver(([entry]) => {
      width = Math.round(entry.contentRect.width);
      redraw();
    });
    watch.observe(node);
    return { node, redraw };
  }

  const shape = (tag, kind, color, attributes, ...children) =>
    svg(tag, { class: kind, style: color ? `color: ${color}` : "", ...attributes }, ...children);
  const text = (x, y, words, anchor = "start", color = "") =>
    shape("text", color && "tb-name", color, { x, y, "text-anchor": anchor }, words);
  const line = (x1, y1, x2, y2, kind = "", color = "") => shape("line", kind, color, { x1, y1, x2, y2 });
  const path = (points, kind, color = "") => shape("polyline", kind, color, { points: points.join(" ") });
  const COLORS = ["var(--tb-id)", "var(--tb-ood)"];
  const dot = (cx, cy, color, kind = "tb-dot", r = 5) => shape("circle", kind, color, { cx, cy, r });

  function ticks(low, high, count) {
    const power = 10 ** Math.floor(Math.log10((high - low) / count));
    const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power * count >= 0.999 * (high - low));
    const [first, last] = [Math.ceil(low / step - 1e-9), Math.floor(high / step + 1e-9)];
    return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
  }

  /** Places on a logarithmic axis: 1, 2 and 5 of each power of ten, or powers alone where these are too many. */
  function decades(low, high, count) {
    const first = Math.floor(Math.log10(low));
    const powers = Array.from({ length: Math.ceil(Math.log10(high)) - first }, (_, i) => first + i);
    const fine = powers.flatMap((k) => [1, 2, 5].map((m) => Number(`${m}e${k}`)));
    const inside = (places) => places.filter((place) => place >= low && place <= high);
    if (inside(fine).length <= count) return inside(fine);
    const step = Math.ceil(powers.length / count);
    return inside(powers.filter((k) => k % step === 0).map((k) => Number(`1e${k}`)));
  }

  /** A horizontal axis at height y, its title below. */
  function axis(x, [left, right], y, places, title, name = plain) {
    const marks = places.flatMap((place) => {
      const anchor = x(place) < left + 12 ? "start" : x(place) > right - 12 ? "end" : "middle";
      return [line(x(place), y, x(place), y + 4), text(x(place), y + 17, name(place), anchor)];
    });
    return [line(left, y, right, y), ...marks, text((left + right) / 2, y + 35, title, "middle")];
  }

  /** Two histograms, [ID, OOD], over equal bins of [low, high]; what lies at `cut` or above is darker. */
  function histograms(sides, [low, high], x, base, top, cut) {
    const bin = (high - low) / sides[0].length;
    const shares = sides.map((counts) => counts.map((count) => count / counts.reduce((a, b) => a + b)));
    const y = scale(0, most(shares.flat()), base, top);
    const areas = (from, kind) =>
      shares.map((share, i) => {
        const corners = share.flatMap((height, k) => {
          const [a, b] = [Math.max(low + k * bin, from), low + (k + 1) * bin];
          return b > a ? [[x(a), y(height)], [x(b), y(height)]] : [];
        });
        const points = [[x(Math.max(low, from)), base], ...corners, [x(high), base]].join(" ");
        return shape("polygon", kind, COLORS[i], { points });
      });
    const own = shares.map((share, i) => share.map((height, k) => height - shares[1 - i][k])); // a name stands where its
    const spots = own.map((ahead) => ahead.indexOf(most(ahead))); // histogram is furthest ahead of the other
    const names = shares.map((share, i) => {
      const [at, toLeft] = [x(low + bin * (spots[i] + 0.5)), spots[i] < spots[1 - i]];
      const inside = toLeft ? Math.max(at - 6, 24) : Math.min(at + 6, x(high) - 34);
      return text(inside, y(share[spots[i]]) - 6, ["ID", "OOD"][i], toLeft ? "end" : "start", COLORS[i]);
    });
    return [...areas(low, "tb-all"), ...areas(Math.min(cut, high), "tb-caught"), ...names];
  }

  // Chapter 2: a threshold and a prevalence

  function threshold({ pairs, prevalence, start, bin }) {
    const steps = pairs[0].id.length - 1;
    const pair = () => pairs[choose.at()];
    const place = (i) => scale(0, steps, ...pair().range)(i);
    const enough = () => pair().ood.findLastIndex((caught) => caught >= 0.95 * pair().ood[0]);
    const [varying, fixed] = ["var(--tb-ood)", "var(--tb-ink)"]; // as in the figure before it

    function rates() {
      const [tpr, fpr] = [pair().ood, pair().id].map((caught) => caught[cut.at()] / caught[0]);
      const pi = prevalence[mix.at()];
      return { tpr, fpr, pi, hits: pi * tpr, alarms: (1 - pi) * fpr, auroc: pair().auroc, aupr: pair().aupr[mix.at()] };
    }

    const above = chart(220, (node, width) => {
      const { range, id, ood } = pair();
      const { tpr, fpr } = rates();
      const x = scale(...range, 8, width - 8);
      const count = (caught, k) => caught[k] - (k + bin < steps ? caught[k + bin] : 0);
      const sides = [id, ood].map((caught) => caught.slice(0, -1).map((_, k) => count(caught, k)));
      const bins = sides.map((side) => side.filter((_, k) => k % bin === 0));
      const t = x(place(cut.at()));
      const room = width - t > 96;
      node.append(
        ...histograms(bins, range, x, 176, 36, place(cut.at())),
        line(t, 4, t, 176, "tb-cut"),
        room ? text(t + 6, 14, "called OOD →") : text(t - 6, 14, "← called ID", "end"),
        ...axis(x, [8, width - 8], 176, ticks(...range, width / 80), "score: higher is more OOD"),
      );
      return `Histograms of the scores; ${percent(tpr)} of OOD and ${percent(fpr)} of ID lie above the threshold.`;
    });

    const below = chart(208, (node, width) => {
      const { pi, aupr, auroc } = rates();
      const x = scale(prevalence[0], prevalence.at(-1), 8, width - 8);
      const y = scale(0, 1, 164, 14);
      const along = (height) => prevalence.map((p, i) => [x(p), y(height(p, i))]);
      node.append(
        ...[0.5, 1].flatMap((level) => [
          line(8, y(level), width - 8, y(level), "tb-grid"),
          text(width - 8, y(level) - 4, `${100 * level} %`, "end"),
        ]),
        path(along((p) => p), "tb-dotted"),
        text(x(0.45), y(0.28), "AUPR of guessing"),
        line(x(pi), 14, x(pi), 164, "tb-cut"),
        path(along(() => auroc), "tb-thick", fixed),
        path(along((_, i) => pair().aupr[i]), "tb-thick", varying),
        dot(x(pi), y(auroc), fixed),
        dot(x(pi), y(aupr), varying),
        text(x(0.62), y(auroc) + 17, "AUROC", "middle", fixed),
        text(x(0.3), y(pair().aupr[30]) + 22, "AUPR", "start", varying),
        ...axis(x, [8, width - 8], 164, [0.01, 0.25, 0.5, 0.75, 0.99], "prevalence: fraction of OOD images", (p) =>
          percent(p).replace(".0", ""),
        ),
      );
      return `AUPR and AUROC by prevalence; at ${percent(pi)} the AUPR is ${percent(aupr)}, the AUROC ${percent(auroc)}.`;
    });

    const numbers = readout({
      TPR: "of OOD caught",
      FPR: "of ID refused",
      Precision: "of alarms right",
      AUROC: "at every mix",
      AUPR: "at this mix",
    });
    const words = html("p", { class: "tb-words" });
    const told = ([ood, caught, inside, alarms]) =>
      `Of 10,000 images ${ood} are OOD, and ${caught} of them are caught; ` +
      `${inside} are ID, and ${alarms} of them are false alarms.`;

    function redraw() {
      const { tpr, fpr, pi, hits, alarms, auroc, aupr } = rates();
      const of = (share) => Math.round(10_000 * share).toLocaleString("en-US");
      numbers.show([tpr, fpr, hits / (hits + alarms), auroc, aupr]);
      words.textContent = told([pi, hits, 1 - pi, alarms].map(of));
      for (const part of [cut, mix]) part.name();
      for (const part of [above, below]) part.redraw();
    }
    function restart() {
      cut.move(enough());
      redraw();
    }

    const choose = choice("Scores of", pairs.map((each) => each.title), restart);
    const cut = slider("Threshold", steps + 1, 0, (i) => plain(place(i).toFixed(2)), redraw);
    const mix = slider("Prevalence", prevalence.length, start, (i) => percent(prevalence[i]), redraw);
    restart();
    const sentence = kept(words, told(Array(4).fill("10,000")));
    return [choose.node, above.node, cut.node, numbers.node, sentence, below.node, mix.node];
  }

  // Chapter 7: a temperature

  function temperature({ frames, sets, start }) {
    const frame = () => frames[knob.at()];
    const set = () => pick.at();
    const logs = frames.map(({ T }) => Math.log10(T));

    const above = chart(224, (node, width) => {
      const { T, range, counts, cut, fpr95 } = frame();
      const x = scale(...range, 8, width - 8);
      const t = x(cut[set()]);
      const words = `95 % of OOD and ${percent(fpr95[set()])} of ID →`;
      const room = width - t > 200;
      const places = ticks(...range, width / 80);
      node.append(
        ...histograms([counts[0], counts[set() + 1]], range, x, 180, 50, cut[set()]),
        line(t, 22, t, 180, "tb-cut"),
        text(room ? t : width - 8, 14, words, room ? "start" : "end"),
        ...axis(x, [8, width - 8], 180, places, "log₁₀ of the score: higher is more OOD"),
      );
      return `Histograms of the score of ID images and of ${sets[set()]} at T = ${T}. Above the threshold: ${words}`;
    });

    const panel = (metric, title) =>
      chart(192, (node, width) => {
        const rows = frames.map((each) => each[metric]);
        const [low, high] = [Math.floor(10 * least(rows.flat())) / 10, Math.ceil(10 * most(rows.flat())) / 10];
        const x = scale(logs[0], logs.at(-1), 30, width - 8);
        const y = scale(low, high, 148, 28);
        const inside = (T) => x(Math.min(Math.max(Math.log10(T), logs[0]), logs.at(-1)));
        const means = rows.map((row) => row.reduce((a, b) => a + b) / row.length);
        const along = (values) => values.map((value, i) => [x(logs[i]), y(value)]);
        const of = (k) => along(rows.map((row) => row[k]));
        const [here, value] = [x(logs[knob.at()]), frame()[metric][set()]];
        node.append(
          shape("rect", "tb-band", "", { x: inside(1), y: 28, width: inside(5) - inside(1), height: 120 }),
          text(0, 14, title, "start", "var(--tb-text)"),
          text(width - 8, 14, sets[set()], "end", "var(--tb-ood)"),
          ...ticks(low, high, 4).flatMap((level) => [
            line(30, y(level), width - 8, y(level), "tb-grid"),
            text(24, y(level) + 4, Math.round(100 * level), "end"),
          ]),
          ...sets.map((_, k) => path(of(k), "tb-thin")),
          path(along(means), "tb-mean"),
          line(here, 28, here, 148, "tb-cut"),
          path(of(set()), "tb-thick", "var(--tb-ood)"),
          dot(here, y(value), "var(--tb-ood)"),
          ...axis(x, [30, width - 8], 148, ticks(logs[0], logs.at(-1), 4).filter(Number.isInteger), "temperature T", (p) =>
            String(Number((10 ** p).toPrecision(3))),
          ),
        );
        return `${title} by temperature, a line a set; ${sets[set()]} at T = ${frame().T}: ${percent(value)}.`;
      });

    const panels = [panel("auroc", "AUROC ↑ (%)"), panel("fpr95", "FPR95 ↓ (%)")];
    const numbers = readout({ AUROC: "OOD above ID", FPR95: "of ID refused to catch 95 % of OOD" });

    function redraw() {
      numbers.show([frame().auroc[set()], frame().fpr95[set()]]);
      knob.name();
      for (const part of [above, ...panels]) part.redraw();
    }

    const pick = choice("OOD images", sets, redraw);
    const knob = slider("Temperature T =", frames.length, start, (i) => String(frames[i].T), redraw);
    redraw();
    const pair = html("div", { class: "tb-panels" }, ...panels.map((part) => part.node));
    return [pick.node, knob.node, numbers.node, above.node, pair];
  }

  // Chapter 8: the tables of the page, one at a time, sorted and drawn

  function results(_, root) {
    const tables = [...root.querySelectorAll("table")].map((table) => ({
      table,
      title: table.caption.textContent,
      head: table.tHead.rows[0],
      rows: [...table.tBodies[0].rows],
      foot: table.tFoot.rows[0],
    }));
    const heads = [...tables[0].head.cells].slice(1);
    const methods = heads.map((head) => ({
      title: head.textContent,
      color: `var(--tb-${head.dataset.method}, var(--tb-ink))`,
      shown: true,
    }));
    const sets = tables[0].rows.map((row) => ({ title: row.cells[0].textContent, shown: true }));
    const sorting = { by: -1, sign: 1 };
    const cells = (row) => [...row.cells].slice(1, methods.length + 1);
    const number = (cell, key) => (key in cell.dataset ? Number(cell.dataset[key]) : NaN);

    for (const { head, rows, foot } of tables) {
      for (const row of [head, ...rows, foot]) row.append(html("td", { class: "tb-strip", "aria-hidden": "true" }));
      methods.forEach(({ title, color }, i) => {
        const button = html("button", { type: "button", style: `--tb-here: ${color}`, onclick: () => sort(i) }, title);
        head.cells[i + 1].replaceChildren(button);
      });
    }

    /** First the best on top, then the worst, then the order of the page again. */
    function sort(i) {
      const best = tables[metric.at()].table.dataset.metric === "fpr95" ? 1 : -1;
      if (sorting.by !== i) Object.assign(sorting, { by: i, sign: best });
      else if (sorting.sign === best) sorting.sign = -best;
      else sorting.by = -1;
      redraw();
    }

    /** One row's numbers on one line: filled is ours with its interval, hollow the paper's. */
    function strip(row, x, marks) {
      const drawn = cells(row).map((cell, i) => ({ cell, ...methods[i] })).filter(({ shown }) => shown);
      const lanes = { here: 7, paper: 17 };
      const used = Object.keys(lanes).filter((key) => drawn.some(({ cell }) => key in cell.dataset));
      const parts = marks.map((mark) => line(x(mark), -6, x(mark), 30, "tb-grid"));
      for (const key of used) {
        const y = used.length > 1 ? lanes[key] : 12;
        const here = drawn.filter(({ cell }) => key in cell.dataset);
        const places = here.map(({ cell }) => number(cell, key));
        parts.push(line(x(least(places)), y, x(most(places)), y));
        for (const { cell, color } of here) {
          const [low, high] = [number(cell, "low"), number(cell, "high")];
          if (key === "here" && high) parts.push(line(x(low), y, x(high), y, "tb-interval", color));
          parts.push(dot(x(number(cell, key)), y, color, key === "here" ? "tb-dot" : "tb-hollow", 4));
        }
      }
      return svg("svg", { height: 24 }, ...parts);
    }

    function redraw() {
      const { table, title, head, rows, foot } = tables[metric.at()];
      for (const each of tables) each.table.hidden = each.table !== table;
      const key = (row) => (sorting.by < 0 ? rows.indexOf(row) : sorting.sign * number(cells(row)[sorting.by], "here"));
      const missing = (row) => Number(Number.isNaN(key(row)));
      table.tBodies[0].append(...[...rows].sort((a, b) => missing(a) - missing(b) || key(a) - key(b) || 0));
      rows.forEach((row, i) => (row.hidden = !sets[i].shown));
      for (const row of [head, ...rows, foot]) cells(row).forEach((cell, i) => (cell.hidden = !methods[i].shown));
      const order = ["ascending", "descending"][sorting.sign > 0 ? 0 : 1];
      cells(head).forEach((cell, i) => cell.setAttribute("aria-sort", i === sorting.by ? order : "none"));

      const drawn = [...rows.filter((row) => !row.hidden), foot];
      const seen = drawn.flatMap((row) => cells(row).filter((cell) => !cell.hidden));
      const all = seen.flatMap((cell) => Object.values(cell.dataset).map(Number));
      const low = all.length ? 10 * Math.floor(least(all) / 10) : 0;
      const high = all.length ? Math.max(10 * Math.ceil(most(all) / 10), low + 10) : 100;
      const marks = ticks(low, high, 4);
      const x = (value) => `${scale(low, high, 3, 97)(value)}%`;
      for (const row of drawn) row.lastElementChild.replaceChildren(strip(row, x, marks));
      const ruler = marks.map((mark) => text(x(mark), 14, mark, "middle"));
      head.lastElementChild.replaceChildren(svg("svg", { height: 18 }, ...ruler));

      const first = sorting.sign > 0 ? "lowest" : "highest";
      said.textContent = told(title, drawn.length - 1, sorting.by < 0 ? "" : methods[sorting.by].title, first);
    }

    const told = (title, count, by, first) =>
      `${title}: ${count} of ${sets.length} sets${by && `, ${by} ${first} first`}.`;
    const longest = (texts) => texts.reduce((a, b) => (b.length > a.length ? b : a));

    const titles = tables.map(({ title }) => title);
    const metric = choice("Metric", titles, redraw);
    const said = html("output", { class: "tb-words" });
    const key = "● here, with its 95 % interval; ○ in the paper. The name of a method sorts.";
    metric.move(tables.findIndex(({ table }) => table.dataset.metric === "auroc"));
    redraw();
    return [
      metric.node,
      boxes("Methods", methods, redraw),
      html("details", {}, html("summary", {}, "Choose sets"), boxes("Sets", sets, redraw)),
      html("p", { class: "tb-words" }, key),
      kept(said, told(longest(titles), sets.length, longest(methods.map(({ title }) => title)), "highest")),
      html("div", { class: "pst-scrollable-table-container" }, ...tables.map(({ table }) => table)),
    ];
  }

  // The example browser: a mark an image, one of them with its card

  const SHAPES = [
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0", // in the order of the sets
    "M0 -5.5L5.2 4H-5.2Z",
    "M-4 -4H4V4H-4Z",
  ];

  function examples(data) {
    const { methods } = data;
    const sets = data.sets.map((each, i) => {
      const [d, transform] = [SHAPES[i], "translate(6 6)"];
      const mark = svg("svg", { "aria-hidden": true }, shape("path", "tb-hollow", each.color, { d, transform }));
      return { ...each, d, mark, shown: true };
    });
    const mistakes = { title: "only mistakes of the score", shown: false };
    const all = data.set.map((_, i) => i);
    const heights = [
      { title: "squared residual ‖r‖², T = 5", of: (i) => data.residual2[i] },
      { title: "squared residual ‖r‖², T = 1", of: (i) => data.residual2_T1[i] },
      { title: "percentile of the score", of: (i) => method().percentiles[i], linear: true },
    ];
    const method = () => methods[score.at()];
    const height = () => heights[up.at()];
    const set = (i) => sets[data.set[i]];
    const wrong = (i) => Boolean(method().alarms[i]) !== set(i).outlier;
    const level = `${100 * data.alpha} %`;
    let shown = []; // images, in the order of the score
    let spots = []; // their places
    let picked;

    /** A little more than the range of these values, on a logarithmic axis. */
    function room(values) {
      const margin = (most(values) / least(values)) ** 0.04;
      return [least(values) / margin, most(values) * margin];
    }

    function products([left, right], [low, high], x, y) {
      return decades(left * low, right * high, 9).flatMap((product) => {
        const [a, b] = [Math.max(left, product / high), Math.min(right, product / low)];
        if (x(b) - x(a) < 60) return [];
        return [
          line(x(a), y(product / a), x(b), y(product / b), "tb-iso"),
          text(x(b) - 4, y(product / b) - 5, short(product), "end"),
        ];
      });
    }

    const ring = shape("circle", "tb-ring", "var(--tb-text)", { r: 10 });
    const plane = chart(392, (node, width) => {
      const [left, right, top, base] = [44, width - 8, 26, 350];
      const { title, of, linear } = height();
      const across = room(data.norm2);
      const x = logarithmic(...across, left, right);
      const range = linear ? [0, 100] : room(all.map(of));
      const y = linear ? scale(...range, base, top) : logarithmic(...range, base, top);
      const cut = y(100 - 100 * data.alpha);
      spots = shown.map((i) => [x(data.norm2[i]), y(of(i))]);
      node.append(
        text(0, 12, title, "start", "var(--tb-text)"),
        ...(linear ? ticks(...range, 5) : decades(...range, 7)).flatMap((place) => [
          line(left, y(place), right, y(place), "tb-grid"),
          text(left - 6, y(place) + 4, short(place), "end"),
        ]),
        ...axis(x, [left, right], base, decades(...across, 7), "squared feature norm ‖h‖²", short),
        ...shown.map((i, at) => {
          const kind = method().alarms[i] ? "tb-alarm" : "tb-hollow";
          return shape("path", kind, set(i).color, { d: set(i).d, transform: `translate(${spots[at].join(" ")})` });
        }),
        ...(linear ? [line(left, cut, right, cut, "tb-cut")] : products(across, range, x, y)),
        ring,
      );
      point();
      const counts = sets.filter((each) => each.shown).map((each) => {
        const own = shown.filter((i) => set(i) === each);
        return `${own.filter((i) => method().alarms[i]).length} of ${own.length} from ${each.title}`;
      });
      return `${title} by squared feature norm. ${method().title} raises an alarm on ${counts.join(", ")}.`;
    });

    const name = (i) => `${set(i).title}, image ${data.index[i]}`;

    /** What is known of an image, in words and numbers; `write` fills it. */
    function sheet() {
      const picture = html("div", { class: "tb-picture" });
      const said = html("output", {}, "Point at a mark, tap it, or move the slider.");
      const rows = methods.map(({ title }) => {
        const cells = [html("td", {}, "–"), html("td", {}, "–"), html("td", {}, "–", html("small", {}, "–"))];
        return { cells, node: html("tr", {}, html("th", { scope: "row" }, title), ...cells) };
      });
      const heads = ["Score", "Value", "Percentile", `At ${level}`].map((head) => html("th", { scope: "col" }, head));
      const head = html("thead", {}, html("tr", {}, ...heads));
      const table = html("table", {}, head, html("tbody", {}, ...rows.map((row) => row.node)));
      const write = (i) => {
        said.replaceChildren(
          html("b", {}, name(i)),
          html("span", {}, `Class: ${data.true[i]}`),
          html("span", {}, `Answer: ${data.predicted[i]}`),
          html("span", {}, `‖h‖² = ${short(data.norm2[i])}`),
          html("span", {}, `‖r‖² = ${short(data.residual2[i])} at T = 5`),
          html("span", {}, `‖r‖² = ${short(data.residual2_T1[i])} at T = 1`),
        );
        methods.forEach(({ scores, percentiles, alarms }, k) => {
          const [does, called] = verdict(alarms[i], set(i).outlier);
          const [value, percentile, what] = rows[k].cells;
          value.textContent = short(scores[i]);
          percentile.textContent = percentiles[i].toFixed(2);
          what.replaceChildren(does, html("small", {}, called));
        });
      };
      const node = html("div", { class: "tb-card" }, picture, said, table);
      return { node, picture, rows, growing: [said, ...rows.map((row) => row.node)], write };
    }

    const card = sheet();

    /** Keeps the room that the longest text needs, whatever fonts are here, so that no other moves the page. */
    function reserve() {
      const trial = sheet();
      trial.node.classList.add("tb-trial");
      for (const { node } of trial.rows) node.classList.add("tb-chosen"); // in bold
      card.node.after(trial.node);
      const height = (part) => part.getBoundingClientRect().height;
      const heights = [trial.growing.map(height), ...all.map((i) => (trial.write(i), trial.growing.map(height)))];
      trial.node.remove();
      card.growing.forEach((part, k) => part.style.setProperty("--room", `${most(heights.map((each) => each[k]))}px`));
    }

    let width = 0;
    const watch = new ResizeObserver(([entry]) => {
      if (entry.contentRect.width !== width) reserve();
      width = entry.contentRect.width;
    });
    watch.observe(card.node);

    function point() {
      const at = shown.indexOf(picked);
      ring.style.visibility = at < 0 ? "hidden" : "visible";
      if (at >= 0) ring.setAttribute("transform", `translate(${spots[at].join(" ")})`);
    }

    /** What a score does with an image, and what that is called. */
    const verdict = (alarm, outlier) =>
      alarm ? ["rejects", outlier ? "caught" : "false alarm"] : ["accepts", outlier ? "missed" : "rightly"];

    function pick(i) {
      if (i === undefined || i === picked) return;
      picked = i;
      point();
      const tile = { x: data.tile[i] % data.columns, y: Math.floor(data.tile[i] / data.columns) };
      const seen = { role: "img", "aria-label": `${name(i)}: ${data.true[i]}`, style: `--x: ${tile.x}; --y: ${tile.y}` };
      card.picture.replaceChildren(html("span", { class: "tb-tile", ...seen }));
      card.write(i);
      knob.move(shown.indexOf(i));
      knob.name();
    }

    function redraw() {
      const order = method().scores;
      shown = all.filter((i) => set(i).shown && (!mistakes.shown || wrong(i))).sort((a, b) => order[a] - order[b]);
      card.rows.forEach(({ node }, k) => node.classList.toggle("tb-chosen", k === score.at()));
      plane.redraw();
      knob.among(shown.length);
      knob.move(shown.indexOf(picked));
      knob.name();
    }

    function nearest({ clientX, clientY }) {
      const { left, top } = plane.node.getBoundingClientRect();
      const far = spots.map(([x, y]) => Math.hypot(left + x - clientX, top + y - clientY));
      const at = far.indexOf(least(far));
      if (far[at] < 24) pick(shown[at]);
    }

    const say = (place) => `${shown.includes(picked) ? place + 1 : "none"} of ${shown.length}`;
    const score = choice("Score", methods.map(({ title }) => title), redraw);
    const up = choice("Vertical axis", heights.map(({ title }) => title), redraw);
    const count = `none of ${all.length}`;
    const knob = slider("Image, in the order of the score:", all.length, 0, say, () => pick(shown[knob.at()]), count);
    knob.node.addEventListener("focusin", () => shown.includes(picked) || pick(shown[knob.at()]));
    for (const event of ["pointermove", "pointerdown"]) plane.node.addEventListener(event, nearest);
    score.move(data.start);
    redraw();
    return [
      html("div", { class: "tb-choices" }, score.node, up.node),
      boxes("Images", [...sets, mistakes], redraw),
      plane.node,
      knob.node,
      card.node,
    ];
  }

  const KINDS = { examples, threshold, temperature, results };
  for (const root of document.querySelectorAll(".tb-explorer")) {
    const data = JSON.parse(root.querySelector("script")?.textContent ?? "{}");
    const parts = KINDS[root.dataset.kind](data, root);
    root.replaceChildren(...parts);
    root.classList.add("tb-live");
    document.getElementById(data.figure)?.querySelector("img")?.replaceWith(root); // over the figure's own caption
  }
})();
