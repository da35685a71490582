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
