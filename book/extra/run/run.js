// One cell of a chapter that runs in the reader's browser: the cell before .tb-run becomes an editor when it is asked for.
// Python and NumPy come from this site, when the button is pressed; what is typed stays in the page.
(() => {
  "use strict";

  const home = document.currentScript.src;
  const root = document.querySelector(".tb-run");
  const { html, svg } = window.thinkback; // of _static/dom.js
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  let cell = root.closest(".cell").previousElementSibling;
  while (!cell.querySelector(".cell_input")) cell = cell.previousElementSibling;
  const code = cell.querySelector(".cell_input pre").textContent.trimEnd();

  const button = (text, onclick, rest = {}) => html("button", { type: "button", onclick, ...rest }, text);
  const load = button(`Run here (${data.megabytes} MB)`, begin);
  const status = html("span", { role: "status" });
  const bar = html("progress", { max: data.bytes, value: 0, hidden: "", "aria-label": "Python is loading" });
  const start = html("div", { class: "tb-row" }, load, bar, status);

  const editor = html("textarea", { id: "tb-code", spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off" });
  const go = button("Run", run);
  const stop = button("Stop", end, { disabled: "" });
  const reset = button("Reset", () => {
    editor.value = code;
    size();
    run();
  });
  const said = html("pre", { class: "tb-said", role: "status", "aria-label": "Result" });
  const strip = svg("svg", { role: "img", height: 84, hidden: "" });
  const bench = html(
    "div",
    { class: "tb-bench", hidden: "" },
    html("label", { for: "tb-code" }, "The cell: change it, then Ctrl + Enter or Run"),
    editor,
    html("div", { class: "tb-row" }, go, reset, stop),
    said,
    strip,
  );
  editor.value = code;
  editor.addEventListener("input", size);
  editor.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey || event.shiftKey)) return;
    event.preventDefault();
    run();
  });
  root.prepend(start, bench);

  let worker, ready, score;

  function size() {
    editor.rows = editor.value.split("\n").length + 1;
  }

  /** A new worker with the numbers; `ready` is kept when Python can run. */
  function hire() {
    bar.hidden = false;
    bar.value = 0;
    worker = new Worker(new URL("worker.js", home));
    ready = new Promise((done, failed) => {
      worker.onerror = (event) => failed(new Error(event.message || "the browser gave no reason"));
      worker.onmessage = ({ data: told }) => {
        if (told.loaded) bar.value = told.loaded;
        if (told.loaded) status.textContent = `Loading Python: ${(told.loaded / 1e6).toFixed(0)} of ${data.megabytes} MB`;
        if (told.failed) failed(new Error(told.failed));
        if (told.ready) done();
      };
    }).finally(() => (bar.hidden = true));
    const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const arrays = Object.fromEntries(Object.entries(data.arrays).map(([name, a]) => [name, { ...a, data: bytes(a.data) }]));
    worker.postMessage({ arrays });
    return ready;
  }

  async function begin() {
    load.disabled = true;
    status.textContent = "Loading Python …";
    try {
      await hire();
    } catch (error) {
      status.textContent = `Python did not load: ${error.message}. Pages opened as files cannot load it.`;
      load.disabled = false;
      return;
    }
    load.remove();
    status.textContent = "Python runs in this page. Nothing that you type leaves it.";
    cell.style.display = "none";
    bench.hidden = false;
    size();
    editor.focus();
    run();
  }

  async function run() {
    if (go.disabled) return;
    go.disabled = true;
    stop.disabled = false;
    try {
      await (worker ? ready : hire());
      status.textContent = "Python runs in this page. Nothing that you type leaves it.";
      const told = await new Promise((done) => {
        worker.onmessage = (event) => done(event.data);
        worker.postMessage({ code: editor.value });
        ended = () => done({ error: "Stopped." });
      });
      show(told);
    } catch (error) {
      show({ error: `Python did not load: ${error.message}` });
    }
    go.disabled = false;
    stop.disabled = true;
  }

  let ended = () => {};

  function end() {
    worker.terminate();
    worker = undefined;
    ended();
  }

  function show({ text, error, failed, score: values }) {
    said.dataset.wrong = Boolean(error ?? failed);
    said.textContent = error ?? failed ?? (text || "The last line shows nothing. End with an expression.");
    score = values;
    draw();
  }

  /** The images in the order of their scores, lowest on the left: one row for each set. */
  function draw() {
    strip.toggleAttribute("hidden", !score);
    const width = strip.getBoundingClientRect().width;
    if (!score || !width) return;
    const order = score.map((_, i) => i).sort((a, b) => score[a] - score[b]);
    const step = width / order.length;
    const bars = order.map((i, place) => {
      const own = data.ood[i];
      const box = { x: place * step, y: own ? 46 : 14, width: Math.max(step - 0.4, 0.8), height: 18 };
      return svg("rect", { class: own ? "tb-out" : "tb-in", ...box });
    });
    const text = (x, y, anchor, words) => svg("text", { x, y, "text-anchor": anchor }, words);
    strip.replaceChildren(
      text(0, 10, "start", data.titles[0]),
      text(0, 43, "start", data.titles[1]),
      text(0, 80, "start", "lowest score"),
      text(width, 80, "end", "highest score"),
      ...bars,
    );
    const half = order.slice(order.length / 2).filter((i) => data.ood[i]).length;
    const words = `${half} of the ${order.length / 2} highest scores belong to ${data.titles[1]}.`;
    strip.setAttribute("aria-label", `The images in the order of their scores. ${words}`);
  }

  new ResizeObserver(draw).observe(strip.parentNode);
})();
