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
    const parts = [];
    for (const reader = reply.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      progress.value += value.length; // no more than its maximum
    }
    const whole = new Blob(parts, { type });
    const [first, second] = new Uint8Array(await whole.slice(0, 2).arrayBuffer());
    if (first !== 0x1f || second !== 0x8b) return whole;
    const unpacked = whole.stream().pipeThrough(new DecompressionStream("gzip"));
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

  /** The picture in a file, of a kind that this browser can draw. */
  const decoded = (chosen) =>
    /svg/.test(chosen.type) || /\.svg$/i.test(chosen.name) ? vector(chosen) : createImageBitmap(chosen);

  /** A drawing (SVG), which may name no size of its own, large enough to be shrunk as a photograph is. */
  async function vector(chosen) {
    const root = new DOMParser().parseFromString(await chosen.text(), "image/svg+xml").documentElement;
    if (root.localName !== "svg") throw new Error("no drawing");
    const length = (name) => (/%/.test(root.getAttribute(name)) ? NaN : parseFloat(root.getAttribute(name)));
    const box = (root.getAttribute("viewBox") ?? "").trim().split(/[\s,]+/).map(Number);
    const boxed = box.length === 4 && box[2] > 0 && box[3] > 0;
    const [width, height] = boxed ? box.slice(2) : [length("width") || 300, length("height") || 150];
    if (!boxed) root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const scale = (8 * SIDE) / Math.min(width, height);
    root.setAttribute("width", width * scale);
    root.setAttribute("height", height * scale);
    const drawing = new Blob([new XMLSerializer().serializeToString(root)], { type: "image/svg+xml" });
    const src = URL.createObjectURL(drawing);
    try {
      const picture = html("img", { src });
      await picture.decode();
      return picture;
    } finally {
      URL.revokeObjectURL(src);
    }
  }

  /** The middle square of a picture, halved until it is small, then 32 x 32: a plain area average. */
  function drawn(picture) {
    const width = picture.naturalWidth ?? picture.width;
    const height = picture.naturalHeight ?? picture.height;
    let side = Math.min(width, height);
    let from = [picture, (width - side) / 2, (height - side) / 2, side, side];
    for (;;) {
      const next = side > 2 * SIDE ? Math.ceil(side / 2) : SIDE;
      const canvas = html("canvas", { width: next, height: next });
      const pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.imageSmoothingQuality = "high";
      pen.fillStyle = "white"; // under what is transparent
      pen.fillRect(0, 0, next, next);
      pen.drawImage(...from, 0, 0, next, next);
      if (next === SIDE) return pen.getImageData(0, 0, SIDE, SIDE);
      from = [canvas, 0, 0, next, next];
      side = next;
    }
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

  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  const status = html("p", { role: "status", class: "tb-words tb-status" });
  const load = html("button", { type: "button", onclick: begin }, `Load the network (${megabytes(data.bytes)})`);
  const progress = html("progress", { max: data.bytes, value: 0, "aria-label": "Loading", hidden: "" });
  const seen = html("canvas", { width: SIDE, height: SIDE, role: "img", "aria-label": "what the network sees" });
  const headline = html("span", { class: "tb-headline" });
  const opinion = html("span");
  const verdict = html("p", { class: "tb-verdict" }, headline, " ", opinion);
  const truth = html("p", { class: "tb-truth" });
  const words = html("p", { class: "tb-words" });
  const bars = data.classes.map(() => html("span", { class: "tb-bar" }));
  const numbers = data.classes.map(() => html("td"));
  const classes = html(
    "table",
    { class: "tb-classes" },
    html("caption", {}, "What the network would say, and how sure it is"),
    html(
      "tbody",
      {},
      ...data.classes.map((name, i) =>
        html("tr", {}, html("th", { scope: "row" }, name), html("td", { "aria-hidden": true }, bars[i]), numbers[i]),
      ),
    ),
  );
  const chart = svg("svg", { role: "img", height: 182 });
  const title = html("p", { class: "tb-words" }, `Scores of pictures that it knows (${data.title}): higher is stranger`);
  const allowed = html("b");
  const slider = html("input", { type: "range", min: 0, max: data.alphas.length - 1, value: data.start, oninput: show });
  const card = html("div", { class: "tb-seen" }, seen, html("div", { "aria-live": "polite" }, verdict, truth));
  const answer = html(
    "div",
    { class: "tb-answer", hidden: "" },
    card,
    html("label", { class: "tb-slider" }, html("span", {}, "False alarms that you allow: ", allowed), slider),
    html("div", { class: "tb-panels" }, classes, html("div", {}, chart, title)),
    words,
  );

  const tiles = [...root.querySelectorAll("tbody img")].map((image, i) => {
    const copy = html("img", { src: image.src, alt: image.alt, title: image.alt, draggable: "false" });
    const radio = html("input", { type: "radio", name: "tb-picture", value: i, onchange: () => put(() => copy, i) });
    return html("label", {}, radio, copy);
  });
  const rows = new Map();
  data.pictures.forEach(({ kind, set }, i) => {
    if (!rows.has(kind)) rows.set(kind, { set, tiles: [] });
    rows.get(kind).tiles.push(tiles[i]);
  });
  const legend = html("legend", {}, "Load the network, then choose a picture");
  const pictures = html(
    "fieldset",
    { class: "tb-pictures", disabled: "" },
    legend,
    ...[...rows].map(([kind, row]) =>
      html("div", {}, html("span", {}, kind, " ", html("small", {}, row.set)), html("div", {}, ...row.tiles)),
    ),
  );
  const file = html("input", { type: "file", accept: "image/*", onchange: () => file.files[0] && own(file.files[0]) });
  const yours = html("label", { class: "tb-own" }, html("span", {}, "Or your own: drop a file anywhere on this page, or"), file);

  root.querySelector("details").open = false;
  root.prepend(
    html("div", { class: "tb-app" }, html("div", { class: "tb-start" }, load, progress), pictures, yours, status, answer),
  );
  new ResizeObserver(show).observe(chart);

  /** A message belongs to what was done last: the next picture removes it. */
  function say(text) {
    status.textContent = text;
    if (text) inView(status);
  }

  function inView(element) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "nearest", behavior: still ? "instant" : "smooth" });
  }

  // A file that is dropped beside the box would replace the page.
  const holdsFiles = (event) => [...event.dataTransfer.types].includes("Files");
  const over = (event, on) => root.classList.toggle("tb-over", on && holdsFiles(event));
  addEventListener("dragover", (event) => {
    if (holdsFiles(event) || root.contains(event.target)) event.preventDefault();
    over(event, true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget || over(event, false));
  addEventListener("drop", (event) => {
    over(event, false);
    const [first, second] = event.dataTransfer.files;
    if (first || root.contains(event.target)) event.preventDefault();
    if (first) {
      file.value = "";
      own(first, second ? `Of several files the first is shown: ${first.name}.` : "");
    } else if (root.contains(event.target)) {
      say("That was no file. Save the picture on your machine first, then drop its file here.");
    }
  });

  // What happens

  let session, said, kept;
  let asked = 0; // the last picture that was asked for goes before those that are still being read
  let queue = Promise.resolve(); // the runtime takes one picture at a time

  async function begin() {
    load.disabled = true;
    progress.value = 0;
    progress.hidden = false;
    if (!kept) say("Loading …");
    try {
      session = await started();
    } catch (error) {
      say(`The network did not load: ${error.message ?? error}. A page that was opened as a file cannot load it.`);
      load.disabled = false;
      progress.hidden = true;
      return;
    }
    load.parentElement.remove();
    pictures.disabled = false;
    legend.textContent = "Choose a picture";
    say("");
    if (kept) return own(...kept);
    tiles[0].firstChild.checked = true;
    put(() => tiles[0].lastChild, 0);
    tiles[0].firstChild.focus({ preventScroll: true });
  }

  /** A picture of the reader's; before the network is there it is kept. */
  function own(chosen, remark = "") {
    if (!session) {
      kept = [chosen, remark];
      const next = load.disabled ? "It is shown as soon as the network is loaded." : "Load the network to see what it says.";
      return say(`${chosen.name} is kept. ${next}`);
    }
    kept = undefined;
    put(() => decoded(chosen), undefined, remark, `${chosen.name} is no picture that this browser can read.`);
  }

  /** Shows a picture to the network and its answer to the reader. Where it cannot be read, the last one stays. */
  function put(picture, index, remark = "", unreadable = "This picture cannot be read.") {
    const mine = ++asked;
    const late = () => mine !== asked;
    say(remark);
    card.setAttribute("aria-busy", true);
    queue = queue.then(async () => {
      if (late()) return;
      const pixels = await Promise.resolve(picture())
        .then(drawn)
        .catch(() => late() || say(unreadable));
      if (pixels && !late()) await look(pixels, index).catch(failed);
      if (!late()) card.removeAttribute("aria-busy");
    });
  }

  function failed(error) {
    said = undefined;
    answer.hidden = true; // nothing is known of this picture
    say(`The network failed: ${error.message ?? error}`);
  }

  async function look(pixels, index) {
    if (index === undefined) for (const tile of tiles) tile.firstChild.checked = false;
    else file.value = "";
    const start = performance.now();
    const out = await session.run({ images: tensor(pixels.data) });
    seen.getContext("2d").putImageData(pixels, 0, 0);
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
    answer.hidden = false;
    show();
    inView(card);
  }

  /** What was right or wrong, where the page knows what the picture shows. */
  function judged({ picture }, refused, best) {
    if (!picture) return "Your picture: whether that is right, only you can say.";
    const it = `It is ${picture.shows}`;
    if (!picture.class) {
      if (refused) return `The alarm is right. ${it}: none of the ten kinds that the network knows.`;
      return `A miss. ${it}: none of the ten kinds that the network knows.`;
    }
    const right = picture.class === data.classes[best];
    if (refused) return `A false alarm: the network knows this kind. ${it}, and its answer is ${right ? "right" : "wrong"}.`;
    return right ? `That is right. ${it}.` : `That is wrong. ${it}, and there was no alarm.`;
  }

  function show() {
    const level = data.alphas[slider.valueAsNumber];
    allowed.textContent = percent(level);
    slider.setAttribute("aria-valuetext", allowed.textContent);
    if (!said) return;
    const { probabilities, score, p, picture } = said;
    const refused = p <= level;
    const best = probabilities.indexOf(Math.max(...probabilities));
    const sure = probabilities[best] < 0.995 ? percent(probabilities[best], 0) : `over ${percent(0.99)}`; // never all
    const guess = `${data.classes[best]} (${sure})`;
    verdict.dataset.refused = refused;
    headline.textContent = refused ? "Alarm: it looks strange." : "No alarm: it looks familiar.";
    opinion.textContent = refused ? `Without the alarm, the network would say ${guess}.` : `The network would say ${guess}.`;
    truth.textContent = judged(said, refused, best);
    const higher = Math.round(p * (data.count + 1)) - 1;
    words.textContent =
      `Of ${data.count.toLocaleString("en")} other pictures of kinds that it knows, ${higher.toLocaleString("en")} score as high ` +
      `as this one: p = ${p.toFixed(4)}. The alarm goes off where p ≤ α = ${percent(level)}. ` +
      `The answer took ${Math.round(said.milliseconds)} ms in this browser.` +
      (picture ? ` Its score differs from that of PyTorch by ${power(Math.abs(score / picture.score - 1))} of itself.` : "");
    probabilities.forEach((value, i) => {
      bars[i].style.width = `${100 * value}%`;
      numbers[i].textContent = `${(100 * value).toFixed(1)}\u00a0%`;
    });
    draw(score, data.thresholds[slider.valueAsNumber]);
  }

  /** Scores of the calibration set, where the threshold stands among them, and where this picture does. */
  function draw(score, threshold) {
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
      beside(along(threshold), 32, "alarm from here on"),
      text(left, bottom + 16, "start", String(+ends[0].toPrecision(2))),
      text(right, bottom + 16, "end", String(+ends[1].toPrecision(2))),
    );
    fit(chart, width);
    chart.setAttribute(
      "aria-label",
      `Histogram of the scores of ${data.count} pictures of known kinds. The threshold is ${threshold.toPrecision(3)}, ` +
        `this picture's score ${score.toPrecision(3)}.`,
    );
  }

  show();
})();
