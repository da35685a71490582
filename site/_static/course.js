// What is folded on the screen is open on paper, and what is dark is light: browsers leave the ground white.
let theme;
addEventListener("beforeprint", () => {
  theme ??= document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  document.querySelectorAll("details:not([open])").forEach((fold) => {
    fold.open = true;
    fold.dataset.openedToPrint = "yes";
  });
});
addEventListener("afterprint", () => {
  if (theme) document.documentElement.dataset.theme = theme;
  theme = undefined;
  document.querySelectorAll("details[data-opened-to-print]").forEach((fold) => {
    fold.open = false;
    delete fold.dataset.openedToPrint;
  });
});

// What scrolls by itself on a narrow screen can be scrolled by keyboard too.
const reachable = () => {
  document.querySelectorAll(".bd-article p:has(> img), .bd-article .cell_output, .bd-article div.math").forEach((part) => {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  });
};
addEventListener("load", reachable);
addEventListener("resize", reachable);

// The search. Its excerpts come from a page's text alone, not from its buttons and its table of contents, and from where
// most of what was asked stands; a page with the words in its title comes first, chapters before records.
if (typeof Search !== "undefined" && typeof Scorer !== "undefined") {
  const query = (new URLSearchParams(location.search).get("q") ?? "").toLowerCase().trim();
  const words = query.split(/\s+/).filter((word) => word.length > 2);
  Scorer.score = ([page, title, , , score]) => {
    const named = words.filter((word) => title.toLowerCase().includes(word)).length;
    const place = page.startsWith("chapters/") ? 3 : page.startsWith("measurements/") || page === "architecture" ? -12 : 0;
    const phrase = words.length > 1 && title.toLowerCase().includes(query) ? 20 : 0;
    return score + 10 * named + phrase + place;
  };
  Search.htmlToText = (source, anchor) => {
    const page = new DOMParser().parseFromString(source, "text/html").querySelector("article.bd-article");
    if (!page) return "";
    page.querySelectorAll(".headerlink, script, style, noscript, .course-ways, h1").forEach((part) => part.remove());
    return ((anchor && page.querySelector(anchor)) || page).textContent.replace(/\s+/g, " ").trim();
  };
  const summary = Search.makeSearchSummary;
  Search.makeSearchSummary = (source, asked, anchor) => {
    const text = Search.htmlToText(source, anchor).toLowerCase();
    const there = [query, ...[...words].sort((a, b) => b.length - a.length), ...asked].find((word) => word && text.includes(word));
    return summary(source, there ? [there] : [], anchor);
  };
}
