// Mounts every figure of a page: <div class="course-figure" data-figure="NAME" data-options='{}'>. NAME/index.js exports
// `async function mount(root, options)`. A figure far down a long chapter is mounted when the reader comes near it.

/**
 * Mount one figure. One that fails says so in its place, and the page goes on.
 * @param {HTMLElement} root
 */
async function mountFigure(root) {
  if (root.dataset.mounted) return;
  root.dataset.mounted = "loading";
  try {
    const figure = await import(`./${root.dataset.figure}/index.js`);
    await figure.mount(root, JSON.parse(root.dataset.options || "{}"));
    root.dataset.mounted = "yes";
  } catch (error) {
    root.dataset.mounted = "failed";
    const note = document.createElement("p");
    note.className = "course-figure-note";
    note.textContent = `This figure could not be loaded: ${error.message}`;
    root.replaceChildren(note);
    console.error(error);
  }
}

// A chapter may name this script once for each of its figures: a module runs once all the same.
const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      mountFigure(target);
    }
  },
  { rootMargin: "600px" },
);
document.querySelectorAll(".course-figure[data-figure]").forEach((root) => near.observe(root));

// A link that has a figure's state in it leads to the figure, as one to a heading does to the heading; the browser finds
// its own place again after a reload and on the way back.
const [named] = location.hash.slice(1).split("?");
const asked = [...document.querySelectorAll(".course-figure[data-figure]")].find((root) => root.dataset.figure === named);
if (asked && performance.getEntriesByType("navigation")[0]?.type === "navigate") asked.scrollIntoView();
