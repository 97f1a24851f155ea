// What tests/test_browser.py asks of a page.
window.checks = {
  // Images and drawings without a name or a picture, formulas with errors, what a keyboard cannot scroll.
  async look() {
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))); // a new size is measured by then
    const all = (selector) => [...document.querySelectorAll(selector)];
    const named = (e) =>
      e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.querySelector("title");
    const drawn = all(".cell_output img, .cell_output svg:not([hidden])");
    const small = (e) => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height) < 8;
    const scrolls = (e) => e.scrollWidth > e.clientWidth && /auto|scroll/.test(getComputedStyle(e).overflowX);
    const reachable = (e) => e.tabIndex >= 0 || e.querySelector("a[href], button, input, [tabindex='0']");
    const name = (e) => e.src || e.outerHTML.slice(0, 120);
    const silent = drawn.filter((e) => e.tagName === "svg" && !e.closest("[aria-hidden=true]") && !named(e));
    return {
      nameless: [
        ...all("img:not([alt])"),
        ...all("article img").filter((image) => !image.alt.trim()),
        ...silent,
      ].map(name),
      empty: [
        ...[...document.images].filter((image) => !(image.complete && image.naturalWidth)),
        ...drawn.filter((e) => !e.closest("svg svg, button, label") && small(e)),
      ].map(name),
      formulas: all(".math .katex-error, .math:not(:has(.katex))").length,
      unreachable: all("article *").filter(scrolls).filter((e) => !reachable(e)).map(name),
      wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    };
  },

  // The same where each paragraph, title and item ends with a word that fits no line.
  async lookAtLongWords() {
    const texts = "article :is(p, li, dt, dd, h1, h2, h3, h4, figcaption, summary)";
    const apart = "table, pre, svg, .math, .tb-explorer, .tb-demo"; // tables scroll, and so does code
    const holders = [...document.querySelectorAll(texts)].filter((e) => !e.closest(apart));
    const words = holders.map(() => document.createTextNode(` /${"w".repeat(80)}`));
    holders.forEach((holder, i) => holder.append(words[i]));
    const { unreachable, wider } = await checks.look();
    words.forEach((word) => word.remove());
    return { unreachable, wider };
  },

  // Formulas that paper lacks, and folds that it shows shut; folded code stays away.
  lostOnPaper() {
    const folds = [...document.querySelectorAll("article details")];
    for (const fold of folds) fold.open = false;
    dispatchEvent(new Event("beforeprint"));
    const shown = (e) => e.checkVisibility() && e.getClientRects().length > 0;
    const formulas = [...document.querySelectorAll("article .katex-html")].filter((e) => !shown(e));
    const lost = [...formulas, ...folds.filter((fold) => !fold.open && shown(fold))];
    for (const fold of folds) fold.open = true;
    return lost.map((e) => e.textContent.trim().slice(0, 60));
  },

  // The same colour a thousand times over costs seconds: one token of each kind and one formula stay.
  thin() {
    const kinds = new Set();
    const again = [...document.querySelectorAll("pre span[class]")].filter((token) => {
      const kind = token.className + Boolean(token.closest(".cell_output"));
      return kinds.has(kind) || !kinds.add(kind);
    });
    for (const token of again) token.replaceWith(token.textContent);
    for (const formula of [...document.querySelectorAll(".katex")].slice(1)) formula.replaceWith("x");
  },

  // Of texts that look the same, on the same ground and in the same kind of element, one stays: colours cost seconds.
  sample() {
    const seen = new Set();
    const ground = (e) => {
      const { backgroundColor, backgroundImage } = getComputedStyle(e);
      const clear = backgroundColor === "rgba(0, 0, 0, 0)" && backgroundImage === "none";
      return clear && e.parentElement ? ground(e.parentElement) : backgroundColor + backgroundImage;
    };
    const words = [...document.querySelectorAll("body *")].filter(
      (e) => !e.closest("svg, .katex, script") && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()),
    );
    const looks = words.map(() => "");
    const { dataset } = document.documentElement;
    const shown = dataset.theme;
    for (const theme of ["light", "dark"]) {
      dataset.theme = theme;
      words.forEach((e, i) => {
        const { color, fontSize, fontWeight, opacity, textDecorationLine, borderBottomStyle } = getComputedStyle(e);
        looks[i] += [color, ground(e), fontSize, fontWeight, opacity, textDecorationLine, borderBottomStyle].join();
      });
    }
    dataset.theme = shown;
    const again = words.filter((e, i) => {
      const part = e.closest("header, nav, aside, article, footer, details, table")?.tagName;
      const look = [looks[i], e.tagName, e.parentElement.tagName, part].join();
      return seen.has(look) || !seen.add(look);
    });
    for (const e of again) for (const n of [...e.childNodes]) if (n.nodeType === 3) n.remove();
    for (const e of document.querySelectorAll(".katex")) e.remove();
    return again.length;
  },

  async axe(rules) {
    const { violations } = await axe.run({ resultTypes: ["violations"], preload: false, ...rules });
    return violations
      .filter((rule) => ["serious", "critical"].includes(rule.impact))
      .flatMap((rule) => rule.nodes.map((node) => [rule.id, node.target.join(" "), node.failureSummary]));
  },

  // Remember how every control looks, and what gets the focus from now on; how many controls there are.
  listen() {
    const look = (e) => {
      const style = getComputedStyle(e);
      return ["outline", "boxShadow", "textDecoration", "backgroundColor", "borderColor"].map((k) => style[k]).join();
    };
    const there = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length;
    const free = (e) => !e.matches(":disabled") && !(e.type === "radio" && !e.checked);
    const controls = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")];
    const stops = controls.filter((e) => e.tabIndex >= 0 && free(e) && there(e));
    checks.before = new Map(stops.map((e) => [e, look(e)]));
    checks.focused = new Map();
    addEventListener("focusin", ({ target: e }) => {
      const { top, bottom, left, right } = e.getBoundingClientRect();
      const inside = bottom > 0 && top < innerHeight && right > 0 && left < innerWidth;
      checks.focused.set(e, { shown: inside && look(e) !== checks.before.get(e) });
    });
    return checks.before.size;
  },

  reached() {
    const name = (e) => e.outerHTML.slice(0, 120);
    const { before, focused } = checks;
    return {
      missed: [...before.keys()].filter((e) => e.tabIndex >= 0 && !focused.has(e)).map(name), // what scrolls still
      unseen: [...focused].filter(([, focus]) => !focus.shown).map(([e]) => name(e)),
    };
  },

  // Bytes of all files of the page, plain and as a server sends them, which packs text; what came from the cache counts, too.
  async weight() {
    const entries = ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind));
    const loaded = entries.filter((file) => !file.name.includes("/_images/")); // of a figure in two forms a page takes one
    const linked = [...document.querySelectorAll("link[rel=stylesheet], script[src], img[src]")];
    const names = [...loaded.map((file) => file.name), ...linked.map((e) => e.href ?? (e.currentSrc || e.src))];
    const files = new Set(names.filter((name) => name.startsWith(location.origin)));
    const packed = (body) => new Response(new Blob([body]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();
    const sizes = [...files].map(async (name) => {
      const body = await (await fetch(name)).arrayBuffer();
      return [body.byteLength, Math.min(body.byteLength, (await packed(body)).byteLength)];
    });
    return (await Promise.all(sizes)).reduce(([plain, sent], [a, b]) => [plain + a, sent + b], [0, 0]);
  },

  // How much of each drawing has to be scrolled into view, in pixels; the size of its text: tests/layout.js.
  drawings() {
    return [...document.querySelectorAll(".cell_output figure")]
      .filter((figure) => figure.querySelector("img[width]"))
      .map((figure) => figure.scrollWidth - figure.clientWidth);
  },

  // Controls that are too small for a finger; a link in a text is as tall as its line.
  taps() {
    const there = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length;
    const target = (e) => e.labels?.[0] ?? e; // a label is hit in place of what it is for
    const inText = (e) => e.matches("a") && getComputedStyle(e).display === "inline";
    return [...document.querySelectorAll("main :is(a[href], button, input, select, summary)")]
      .filter((e) => there(e) && !e.disabled && !inText(e))
      .map((e) => [e.outerHTML.slice(0, 120), target(e).getBoundingClientRect()])
      .filter(([, box]) => Math.min(box.width, box.height) < 24)
      .map(([name]) => name);
  },
};
