// What is folded on the screen is open on paper.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not([open])").forEach((fold) => {
    fold.open = true;
    fold.dataset.openedToPrint = "yes";
  });
});
addEventListener("afterprint", () => {
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
