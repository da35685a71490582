/**
 * The ruler: where one weight of your own lands in NF4, MXFP4 and NVFP4, and the rounding error of every other weight of
 * its block. Chapter 07 makes the formats by hand.
 */
import { choice, control, h, s, signed, spoken, styles, urlState } from "../common/dom.js";
import { FORMATS } from "./formats.js";

const START = { w: 0.038, block: 0.124, tensor: 0.3, mx: "floor" };
/** The largest weights' sliders are logarithmic, in this range, in so many steps for each factor of ten. */
const SMALLEST = 0.01, LARGEST = 1, STEPS = 100;
const WAYS = [{ value: "floor", text: "down, as OCP says" }, { value: "even", text: "to even" }, { value: "up", text: "up" }];
const TRIES = [
  { text: "a block's largest weight, cut off", state: { w: 0.124, block: 0.124 } },
  { text: "just past a power of two", state: { w: 0.126, block: 0.126 } },
  { text: "a tiny weight", state: { w: 0.0045, block: 0.124 } },
  { text: "an outlier next to it", state: { w: 0.038, block: 0.9, tensor: 0.9 } },
  { text: "an outlier in the tensor", state: { w: 0.038, block: 0.124, tensor: 1 } },
];
const CURVE = 46, AXIS = 64, HEIGHT = 100; // pixels: the curve's foot, the ruler's line, the whole drawing

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
/** Three significant digits and true minus signs: 0.0380, −0.124, 1.00e−9. */
const short = (value) => {
  const near = round(value), size = Math.abs(near);
  if (!size) return "0";
  if (size < 1e-6) return near.toExponential(2).replaceAll("-", "−");
  return signed(near, clamp(2 - Math.floor(Math.log10(size)), 0, 8));
};
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const round = (value) => Number(value.toPrecision(3));
const toSlider = (value) => Math.round(STEPS * Math.log10(value / SMALLEST));
const fromSlider = (step) => round(SMALLEST * 10 ** (step / STEPS));

/** @param {HTMLElement} root */
export async function mount(root) {
  await styles(import.meta.url);
  const url = urlState("ruler", START);
  let state = sane(url.read());

  const live = spoken();
  const weight = control("The weight", { min: -1000, max: 1000, step: 1 }, (step) => change({ w: round((step / 1000) * state.block) }), (w) => change({ w, block: Math.max(state.block, Math.abs(w)) }), short);
  const range = { min: 0, max: STEPS * Math.log10(LARGEST / SMALLEST), step: 1 };
  const block = control("Largest weight in its block", range, (step) => change({ block: fromSlider(step) }), (value) => change({ block: value }), short);
  const tensor = control("Largest in the tensor (NVFP4 alone)", range, (step) => raise(fromSlider(step)), raise, short);
  const mx = choice("MXFP4's scale is rounded", WAYS, state.mx, (value) => change({ mx: value }));
  const tries = TRIES.map((own) => h("button", { type: "button", onclick: () => change(own.state) }, own.text));
  const rulers = Object.entries(FORMATS).map(([name, format]) => ruler(name, format, (w) => change({ w })));
  const summary = h("p", { class: "ruler-summary" });

  /** A tensor's largest weight is no smaller than its block's. */
  function raise(value) {
    change({ tensor: value, block: Math.min(state.block, value) });
  }

  root.replaceChildren(h("div", { class: "figure-body ruler" },
    h("div", { class: "ruler-controls" }, weight.element, block.element, tensor.element, mx.element),
    summary,
    h("div", { class: "ruler-rulers" }, ...rulers.map((own) => own.element)),
    h("div", { class: "figure-buttons ruler-tries" }, h("span", { class: "figure-muted" }, "try:"), ...tries),
    h("p", { class: "figure-muted" }, "Each mark is a value that the block can store. The curve above is the rounding error of a weight at that place, on one scale in all three. Drag on a ruler to move the weight. NF4 takes 4.13 bits when its scales are quantized too. One weight doesn't rank the formats: chapter 07 measures whole layers."),
    live.element));

  function show() {
    weight.show(state.w, (1000 * state.w) / state.block);
    block.show(state.block, toSlider(state.block));
    tensor.show(state.tensor, toSlider(state.tensor));
    mx.set(state.mx);
    const found = Object.values(FORMATS).map(({ store }) => store(asked(state.w)));
    const ends = found.flatMap(({ marks }) => [marks[0], marks.at(-1)]);
    const reach = Math.max(state.block, ...ends.map(Math.abs));
    const samples = Object.values(FORMATS).map(({ store }) => (w) => Math.abs(store(asked(w)).value - w));
    const worst = Math.max(...samples.map((error) => largestError(error, state.block)));
    rulers.forEach((own, i) => own.show(found[i], { state, reach, worst, error: samples[i] }));
    const best = found.map(({ value }) => Math.abs(value - Math.fround(state.w)));
    const least = Math.min(...best), names = Object.values(FORMATS).filter((_, i) => best[i] === least).map(({ text }) => text);
    summary.textContent = `${short(state.w)} is stored best by ${list(names)}${least ? `, ${short(least)} off` : ", exactly"}.`
      + (found.some(({ cut }) => cut) ? ` It lies past the end of ${list(Object.values(FORMATS).filter((_, i) => found[i].cut).map(({ text }) => text))}, which cuts it off.` : "");
    live.say(`The weight ${short(state.w)} in a block up to ${short(state.block)}. ${rulers.map((own) => own.said).join(" ")} ${summary.textContent}`);
  }
  const asked = (w) => ({ weight: w, block: state.block, tensor: state.tensor, rounding: state.mx });
  function change(update) {
    state = sane({ ...state, ...update });
    url.write(state);
    show();
  }
  addEventListener("hashchange", () => {
    if (!location.hash.startsWith("#ruler")) return;
    state = sane(url.read());
    show();
  });
  new ResizeObserver(show).observe(rulers[0].element);
  show();
}

/**
 * What can't be is brought to the nearest that can: |weight| <= block's largest <= tensor's largest. All have three
 * digits, as they are shown, so that the numbers on the page are those that it computes with.
 */
function sane({ w, block, tensor, mx }) {
  const largest = clamp(round(block), SMALLEST, LARGEST);
  return {
    w: clamp(round(w), -largest, largest),
    block: largest,
    tensor: clamp(round(tensor), largest, LARGEST),
    mx: WAYS.some(({ value }) => value === mx) ? mx : START.mx,
  };
}

function largestError(error, block) {
  let most = 0;
  for (let i = 0; i <= 400; i++) most = Math.max(most, error((block * (i - 200)) / 200));
  return most;
}

const list = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

/** One format's ruler: its marks, the weight, where it lands, and the error curve. */
function ruler(name, { text, block, bits, scale: stored }, moved) {
  const drawing = s("svg", { class: "ruler-drawing", height: HEIGHT, role: "img" });
  const scale = h("span", { class: "figure-muted" }), said = h("p", { class: "ruler-said figure-number" });
  const element = h("section", { class: `ruler-one ruler-${name}`, "data-format": name },
    h("p", { class: "ruler-head" }, h("strong", {}, text), h("span", { class: "figure-muted" }, ` blocks of ${block}, ${bits} bits a weight, scale: ${stored}`)),
    drawing, said, scale);
  let at = () => 0;
  const drag = (event) => event.buttons === 1 && moved(round(at(event.offsetX)));
  drawing.addEventListener("pointerdown", (event) => {
    drawing.setPointerCapture(event.pointerId);
    drag(event);
  });
  drawing.addEventListener("pointermove", drag);
  return {
    element,
    said: "",
    show(own, { state, reach, worst, error }) {
      const width = Math.max(120, drawing.clientWidth), margin = 14;
      const x = (value) => margin + ((value / reach + 1) / 2) * (width - 2 * margin);
      at = (pixel) => clamp((((pixel - margin) / (width - 2 * margin)) * 2 - 1) * reach, -state.block, state.block);
      const steps = Math.round(width / 1.5);
      const points = Array.from({ length: steps + 1 }, (_, i) => {
        const w = state.block * ((2 * i) / steps - 1);
        return `${x(w).toFixed(1)},${(CURVE - (error(w) / worst) * (CURVE - 6)).toFixed(1)}`;
      });
      drawing.replaceChildren(
        s("polygon", { class: "ruler-error", points: `${x(-state.block)},${CURVE} ${points.join(" ")} ${x(state.block)},${CURVE}` }),
        s("line", { class: "ruler-line", x1: x(-reach), x2: x(reach), y1: AXIS, y2: AXIS }),
        ...own.marks.map((mark) => s("line", { class: "ruler-mark", x1: x(mark), x2: x(mark), y1: AXIS - 9, y2: AXIS + 9 })),
        s("line", { class: "ruler-mark ruler-chosen", x1: x(own.value), x2: x(own.value), y1: AXIS - 12, y2: AXIS + 12 }),
        s("line", { class: "ruler-move", x1: x(state.w), x2: x(own.value), y1: AXIS, y2: AXIS }),
        s("line", { class: "ruler-weight", x1: x(state.w), x2: x(state.w), y1: 4, y2: AXIS }),
        s("circle", { class: "ruler-dot", cx: x(state.w), cy: AXIS, r: 5 }),
        ...[[-reach, "start"], [0, "middle"], [reach, "end"]].map(([value, anchor]) => s("text", { class: "ruler-text", x: x(value) + (anchor === "start" ? -12 : anchor === "end" ? 12 : 0), y: HEIGHT - 6, "text-anchor": anchor }, short(value))));
      const off = own.value - Math.fround(state.w), code = own.code.toString(2).padStart(4, "0");
      const share = state.w ? ` (${percent(Math.abs(off / Math.fround(state.w)))})` : "";
      const end = own.cut ? ", cut off" : "";
      said.replaceChildren(h("b", {}, `${short(own.value)}`), ` by code ${code}, ${off ? `${off > 0 ? "+" : ""}${short(off)} off${share}${end}` : "exact"}`);
      scale.textContent = `scale ${short(own.scale)} × ${short(own.entry)} from the list`;
      this.said = `${text} stores ${said.textContent}.`;
      element.dataset.value = own.value;
      element.dataset.code = own.code;
      drawing.setAttribute("aria-label", `${text}: ${own.marks.length} values from ${short(own.marks[0])} to ${short(own.marks.at(-1))}; the weight ${short(state.w)} becomes ${short(own.value)}.`);
    },
  };
}
