// The search page: sections that hold some words of the query, ranked by MiniSearch and gathered by page.
(() => {
  "use strict";

  const { html, sections } = window.thinkback;
  const SMALL = // words of questions, not of answers
    "a about an and are as at be but by can could did do does for from had has have how i if in into is it its me my of on " +
    "or our should so such that the their then there these they this to up was we what when where which who why will with " +
    "would you your";
  const small = new Set(SMALL.split(" "));
  const REFERENCE = /^book\/(glossary|notation|bibliography)/; // explain words; the chapters answer questions
  const MOST = 3; // sections shown of one page
  const field = document.querySelector(".bd-search-container input[type=search]");
  const results = document.getElementById("search-results");
  const count = document.getElementById("search-count");
  results.before(count);

  /** A word as it is indexed and asked for: small letters, no plural; null for one that says nothing. */
  function term(word) {
    const low = word.toLowerCase().replace(/['’]s$/, "");
    if (small.has(low)) return null;
    return low.length > 3 ? low.replace(/ies$/, "y").replace(/([^s])s$/, "$1") : low;
  }

  const index = new MiniSearch({
    fields: ["page", "heading", "text"],
    processTerm: term,
    searchOptions: {
      boost: { page: 2, heading: 3 },
      prefix: (word) => word.length > 3,
      fuzzy: (word) => (word.length > 5 ? 0.15 : false), // a slip of the finger
      weights: { prefix: 0.5, fuzzy: 0.2 },
      boostDocument: (id) => (REFERENCE.test(sections[id].at) ? 0.5 : 1),
    },
  });
  index.addAll(sections.map((section, id) => ({ id, ...section })));

  /** About 200 characters around the place with most of the words, which are marked. */
  function excerpt(text, words) {
    const found = new RegExp(`(?<![\\p{L}\\d])(?:${words.map((w) => w.replace(/\W/g, "\\$&")).join("|")})s?(?![\\p{L}\\d])`, "giu");
    const places = [...text.matchAll(found)].map((match) => match.index);
    const near = places.map((at) => new Set(places.filter((p) => p >= at && p < at + 160)).size);
    const at = places[near.indexOf(Math.max(...near))] ?? 0;
    const start = at < 60 ? 0 : text.lastIndexOf(" ", at - 40) + 1;
    const end = start + 200 < text.length ? text.lastIndexOf(" ", start + 200) : text.length;
    const piece = text.slice(start, end);
    const parts = [start ? "… " : ""];
    let from = 0;
    for (const match of piece.matchAll(found)) {
      parts.push(piece.slice(from, match.index), html("mark", {}, match[0]));
      from = match.index + match[0].length;
    }
    return html("p", { class: "context" }, ...parts, piece.slice(from), end < text.length ? " …" : "");
  }

  function entry(found) {
    const best = found[0];
    const { page, at } = sections[best.id];
    const parts = found.filter(({ id }) => sections[id].heading !== page).slice(0, MOST);
    const links = parts.map(({ id }) => html("a", { href: sections[id].at }, sections[id].heading));
    return html(
      "li",
      {},
      html("a", { href: at.split("#")[0] }, page),
      excerpt(sections[best.id].text, Object.keys(best.match)),
      ...(links.length ? [html("p", { class: "places" }, ...links)] : []),
    );
  }

  function show() {
    const query = field.value.trim();
    const pages = new Map();
    for (const found of index.search(query)) {
      const { page } = sections[found.id];
      pages.set(page, [...(pages.get(page) ?? []), found]);
    }
    const worth = (found) => found[0].score + 0.2 * (found[1]?.score ?? 0); // best first
    const ranked = [...pages.values()].sort((a, b) => worth(b) - worth(a));
    results.replaceChildren(html("ul", { class: "search" }, ...ranked.map(entry)));
    const number = `${ranked.length} page${ranked.length === 1 ? "" : "s"}, the best match first.`;
    const none = query.split(/\s+/).some(term) ? "No page has a word of this query." : "Type a word, or a question.";
    count.textContent = ranked.length ? number : none;
  }

  field.value = new URLSearchParams(location.search).get("q") ?? "";
  field.addEventListener("input", show);
  show();
})();
