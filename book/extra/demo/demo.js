// The live demo of book/demo.md: a network and its detector, one ONNX graph, run in the reader's browser.
// Nothing is loaded before the button is pressed, everything comes from this site, and no picture leaves the page.
(() => {
  "use strict";

  const home = document.currentScript.src;
  const root = document.querySelector(".tb-demo");
  if (!root) return;
  const data = JSON.parse(root.querySelector("script").textContent);
  const SIDE = 32;

  const { html, svg, fit } = window.thinkback; // of _static/dom.js
  const percent = (x, digits = 1) => `${+(100 * x).toFixed(digits)}\u00a0%`;
  const power = (x) => {
    const [digits, exponent] = x.toExponential(0).split("e");
    const raised = [...exponent.replace("+", "")].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
    return x ? `${digits} · 10${raised}` : "0";
  };

  // The model

  /** A file of this site; unpacked here, unless the server has said that it is packed and the browser did it. */
  async function fetched(path, type) {
    const reply = await fetch(new URL(path, home));
    if (!reply.ok) throw new Error(`${path}: ${reply.status}`);
    const bytes = new Uint8Array(await reply.arrayBuffer());
    if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return new Blob([bytes], { type });
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Blob([await new Response(unpacked).arrayBuffer()], { type });
  }

  const script = (path) =>
    new Promise((done, failed) => {
      const src = new URL(path, home).href;
      document.head.append(html("script", { src, onload: done, onerror: () => failed(new Error(path)) }));
    });

  async function started() {
    const [wasm, model] = await Promise.all([
      fetched("../onnxruntime/ort-wasm-simd.wasm.gz", "application/wasm"),
      fetched("model.onnx.gz", ""),
      script("../onnxruntime/ort.wasm-core.min.js"),
    ]);
    ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
    ort.env.wasm.wasmPaths = { "ort-wasm-simd.wasm": URL.createObjectURL(wasm) };
    return ort.InferenceSession.create(new Uint8Array(await model.arrayBuffer()), { executionProviders: ["wasm"] });
  }

  /** The middle square of a picture, halved until it is small, then 32 x 32 on the canvas: a plain area average. */
  function drawn(picture) {
    const width = picture.naturalWidth ?? picture.width;
    const height = picture.naturalHeight ?? picture.height;
    let side = Math.min(width, height);
    let from = [picture, (width - side) / 2, (height - side) / 2, side, side];
    do {
      const next = side > 2 * SIDE ? Math.ceil(side / 2) : SIDE;
      const canvas = side > 2 * SIDE ? html("canvas", { width: next, height: next }) : seen;
      const pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.imageSmoothingQuality = "high";
      pen.fillStyle = "white"; // under what is transparent
      pen.fillRect(0, 0, next, next);
      pen.drawImage(...from, 0, 0, next, next);
      from = [canvas, 0, 0, next, next];
      side = next;
    } while (from[0] !== seen);
    return seen.getContext("2d").getImageData(0, 0, SIDE, SIDE).data;
  }

  /** Pixels (H, W, RGBA) in 0 ... 255 as the graph reads them, (1, RGB, H, W) in 0 ... 1. */
  function tensor(pixels) {
    const area = SIDE * SIDE;
    const values = Float32Array.from({ length: 3 * area }, (_, i) => pixels[4 * (i % area) + Math.floor(i / area)] / 255);
    return new ort.Tensor("float32", values, [1, 3, SIDE, SIDE]);
  }

  function softmax(logits) {
    const top = Math.max(...logits);
    const powers = [...logits].map((z) => Math.exp(z - top));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((value) => value / sum);
  }

  // The page

  const status = html("span", { role: "status", class: "tb-words" });
  const load = html("button", { type: "button", onclick: begin }, `Load the model (${data.megabytes} MB)`);
  const seen = html("canvas", { width: SIDE, height: SIDE, role: "img", "aria-label": "what the network sees" });
  const verdicts = [html("span"), html("span")]; // accepted, refused: one of them is seen, both keep their room
  const verdict = html("p", { class: "tb-verdict" }, ...verdicts);
  const words = html("p", { class: "tb-words" });
  const agreement = html("p", { class: "tb-words" });
  const bars = data.classes.map(() => html("span", { class: "tb-bar" }));
  const numbers = data.classes.map(() => html("td"));
  const classes = html(
    "table",
    { class: "tb-classes" },
    html("caption", {}, "Class probabilities"),
    html(
      "tbody",
      {},
      ...data.classes.map((name, i) =>
        html("tr", {}, html("th", { scope: "row" }, name), html("td", { "aria-hidden": true }, bars[i]), numbers[i]),
      ),
    ),
  );
  const chart = svg("svg", { role: "img", height: 182 });
  const title = html("p", { class: "tb-words" }, `${data.title}, calibration images`);
  const alpha = html("b");
  const slider = html("input", { type: "range", min: 0, max: data.alphas.length - 1, value: data.start, oninput: show });
  const answer = html(
    "div",
    { class: "tb-answer", hidden: "" },
    html("div", { class: "tb-seen" }, seen, html("div", { "aria-live": "polite" }, verdict, words)),
    html("label", { class: "tb-slider" }, html("span", {}, "False alarms that are allowed ", alpha), slider),
    html("div", { class: "tb-panels" }, classes, html("div", {}, chart, title)),
    agreement,
  );

  const tiles = [...root.querySelectorAll("tbody img")].map((image, i) => {
    const copy = html("img", { src: image.src, alt: image.alt, title: image.alt });
    const radio = html("input", { type: "radio", name: "tb-picture", value: i, onchange: () => put(copy, i) });
    return html("label", {}, radio, copy);
  });
  const rows = {};
  data.pictures.forEach((picture, i) => (rows[picture.title] ??= []).push(tiles[i]));
  const file = html("input", { type: "file", accept: "image/*", onchange: () => own(file.files[0]) });
  const pictures = html(
    "fieldset",
    { class: "tb-pictures", disabled: "" },
    html("legend", {}, "Choose a picture, or drop your own here"),
    ...Object.entries(rows).map(([title, row]) => html("div", {}, html("span", {}, title), html("div", {}, ...row))),
    html("label", { class: "tb-own" }, html("span", {}, "Your own"), file),
  );

  root.querySelector("details").open = false;
  root.prepend(html("div", { class: "tb-app" }, html("div", { class: "tb-start" }, load, status), pictures, answer));
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    if (session && event.dataTransfer.files[0]) own(event.dataTransfer.files[0]);
  });
  new ResizeObserver(show).observe(chart);

  // What happens

  let session, said;
  let queue = Promise.resolve(); // the runtime takes one picture at a time

  async function begin() {
    load.disabled = true;
    status.textContent = "Loading …";
    try {
      session = await started();
    } catch (error) {
      status.textContent = `The model did not load: ${error.message ?? error}. Pages opened as files cannot load it.`;
      load.disabled = false;
      return;
    }
    load.remove();
    status.textContent = "The model runs in this page. What you choose stays on your machine.";
    pictures.disabled = false;
    answer.hidden = false;
    tiles[0].firstChild.click();
    tiles[0].firstChild.focus();
  }

  async function own(chosen) {
    if (!chosen) return;
    try {
      const picture = await createImageBitmap(chosen);
      for (const tile of tiles) tile.firstChild.checked = false;
      put(picture);
    } catch {
      status.textContent = `${chosen.name} is no picture that this browser can read.`;
    }
  }

  function put(picture, index) {
    queue = queue.then(async () => {
      const images = tensor(drawn(picture));
      const start = performance.now();
      const out = await session.run({ images });
      said = {
        probabilities: softmax(out.logits.data),
        score: out.score.data[0],
        p: out.p_value.data[0],
        milliseconds: performance.now() - start,
        picture: data.pictures[index],
      };
      answer.dataset.logits = JSON.stringify([...out.logits.data]);
      answer.dataset.score = said.score;
      answer.dataset.p = said.p;
      show();
    });
    queue = queue.catch((error) => (status.textContent = `The model failed: ${error.message ?? error}`));
  }

  function show() {
    const level = data.alphas[slider.valueAsNumber];
    alpha.textContent = `α = ${percent(level)}`;
    slider.setAttribute("aria-valuetext", alpha.textContent);
    if (!said) return;
    const { probabilities, score, p, picture } = said;
    const refused = p <= level;
    const best = probabilities.indexOf(Math.max(...probabilities));
    verdicts[0].textContent = `Accepted as ${data.classes[best]}: p = ${p.toFixed(4)} > α`;
    verdicts[1].textContent = `Refused: p = ${p.toFixed(4)} ≤ α`;
    verdict.dataset.refused = refused;
    const higher = Math.round(p * (data.count + 1)) - 1;
    words.textContent =
      `${picture ? `${picture.title}: ${picture.class}. ` : "Your picture. "}Of ${data.count.toLocaleString("en")} test ` +
      `images, ${higher.toLocaleString("en")} score as high. The network is ${percent(probabilities[best])} sure: ` +
      `${data.classes[best]}.`;
    probabilities.forEach((value, i) => {
      bars[i].style.width = `${100 * value}%`;
      numbers[i].textContent = `${(100 * value).toFixed(1)}\u00a0%`;
    });
    agreement.textContent =
      `${Math.round(said.milliseconds)} ms in this browser.` +
      (picture ? ` The score differs from PyTorch's by ${power(Math.abs(score / picture.score - 1))} of itself.` : "");
    draw(score, data.thresholds[slider.valueAsNumber], level);
  }

  /** Scores of the calibration set, where the threshold stands among them, and where this picture does. */
  function draw(score, threshold, level) {
    const width = Math.round(chart.getBoundingClientRect().width);
    const { log, range, counts } = data.histogram;
    if (!width) return;
    const [left, right, bottom] = [8, width - 8, 160];
    const along = (value) => {
      const at = log ? Math.log10(Math.max(value, 1e-300)) : value;
      return left + (Math.min(Math.max((at - range[0]) / (range[1] - range[0]), 0), 1) || 0) * (right - left);
    };
    const most = Math.max(...counts);
    const step = (right - left) / counts.length;
    const line = (kind, x, top) => svg("line", { class: kind, x1: x, x2: x, y1: top, y2: bottom });
    const text = (x, y, anchor, what) => svg("text", { x, y, "text-anchor": anchor }, what);
    /** Words beside a line, on the side where there is room. */
    const beside = (x, y, what) => (x > width / 2 ? text(x - 8, y, "end", what) : text(x + 8, y, "start", what));
    const ends = log ? range.map((end) => 10 ** end) : range;
    chart.replaceChildren(
      ...counts.map((count, i) => {
        const height = ((bottom - 44) * count) / most;
        const beyond = left + (i + 0.5) * step >= along(threshold);
        const box = { x: left + i * step, y: bottom - height, width: Math.max(step - 1, 1), height };
        return svg("rect", { class: beyond ? "tb-beyond" : "tb-within", ...box });
      }),
      svg("line", { x1: left, x2: right, y1: bottom, y2: bottom }),
      line("tb-cut", along(threshold), 22),
      line("tb-here", along(score), 8),
      svg("circle", { class: "tb-here", cx: along(score), cy: 8, r: 4 }),
      beside(along(score), 12, "this picture"),
      beside(along(threshold), 32, `threshold, α = ${percent(level)}`),
      text(left, bottom + 16, "start", String(+ends[0].toPrecision(2))),
      text(right, bottom + 16, "end", String(+ends[1].toPrecision(2))),
    );
    fit(chart, width);
    chart.setAttribute(
      "aria-label",
      `Histogram of the scores of ${data.count} calibration images. The threshold is ${threshold.toPrecision(3)}, ` +
        `this picture's score ${score.toPrecision(3)}.`,
    );
  }

  show();
})();
