/**
 * LoRA's drawing: the frozen weight with A and B beside it, to scale, for sizes and a rank of one's own; their numbers, bytes
 * and FLOPs, and the formula with the numbers put in.
 */
import { choice, control, h, s, spoken, styles, urlState } from "../common/dom.js";
import { counted, LAYERS } from "./count.js";

const START = { d_in: 4096, d_out: 4096, r: 8, alpha: 16 };
const RANKS = [1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048];
const ALPHAS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
const SIZES = [64, 128, 192, 256, 384, 576, 768, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 8192, 11008, 14336, 16384, 28672];
const LARGEST = { d: 131_072, alpha: 4096 };
const HEIGHT = 280, GAP = 10, LEFT = 22, TOP = 24, MARGIN = 10; // pixels: W0 and A together, between matrices, around them

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const many = (n) => n.toLocaleString("en-US");
/** Three digits: 2, 0.125, 5.66. */
const short = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 3 });
const BIG = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
/** A count with its prefix, which stays beside it: 33.6 M. */
function si(n, unit = "") {
  const [size, prefix] = BIG.find(([own]) => n >= own) ?? BIG.at(-1);
  return `${short(n / size)}\u00a0${prefix}${unit}`.trim();
}
const nearest = (list, value) => list.reduce((best, own, i) => (Math.abs(Math.log(own / value)) < Math.abs(Math.log(list[best] / value)) ? i : best), 0);

/** @param {HTMLElement} root */
export async function mount(root) {
  await styles(import.meta.url);
  const url = urlState("layer", START);
  let state = sane(url.read());

  const live = spoken();
  const over = (list, text, name) => {
    const own = control(text, { min: 0, max: list.length - 1, step: 1 }, (step) => change({ [name]: list[step] }), (value) => change({ [name]: value }), many);
    return { element: own.element, show: () => own.show(state[name], nearest(list, state[name])) };
  };
  const controls = [over(RANKS, "Rank r", "r"), over(ALPHAS, "alpha", "alpha"), over(SIZES, "d_in, numbers that come in", "d_in"), over(SIZES, "d_out, numbers that go out", "d_out")];
  const real = choice("A layer of a real model", Object.entries(LAYERS).map(([value, { text }]) => ({ value, text })), "", (value) => change({ d_in: LAYERS[value].dIn, d_out: LAYERS[value].dOut }));
  const says = h("p", { class: "figure-muted" });
  const drawing = s("svg", { class: "layer-drawing", role: "img" });
  const scale = h("p", { class: "figure-muted" });
  const summary = h("p", { class: "layer-summary" }), formula = h("p", { class: "layer-formula" }), scaling = h("p");
  const rows = ["parameters", "in bf16", "FLOPs a token"].map((name) => ({ name, cells: [0, 1].map(() => h("td", { class: "figure-number" })) }));
  const head = (kind, name) => h("th", { scope: "col" }, h("p", {}, h("span", { class: `layer-swatch layer-${kind}`, "aria-hidden": "true" }), name, h("span", { class: "figure-muted" }, kind)));
  const table = h("table", { class: "layer-table" },
    h("thead", {}, h("tr", {}, h("td"), head("frozen", "W₀"), head("trained", "A and B"))),
    h("tbody", {}, ...rows.map(({ name, cells }) => h("tr", {}, h("th", { scope: "row" }, name), ...cells))));

  const body = h("div", { class: "layer figure-columns" },
    h("div", { class: "figure-left" },
      h("div", { class: "layer-controls" }, ...controls.map(({ element }) => element)),
      h("div", {}, real.element, says),
      h("div", { class: "layer-formulas" }, h("p", { class: "layer-formula" }, "h = W₀x + (α/r) B(Ax)"), formula, scaling)),
    h("div", { class: "figure-right" },
      h("div", { class: "layer-drawn" }, drawing, scale),
      summary,
      h("div", {}, table, h("p", { class: "figure-muted" }, "A product of an (a, b) and a (b, c) matrix takes 2abc FLOPs; A and B's include the addition to W₀x. FLOPs aren't time: skinny matmuls run at a lower rate."))),
    live.element);
  root.replaceChildren(h("div", { class: "figure-body" }, body));

  function show() {
    const { d_in: dIn, d_out: dOut, r, alpha } = state, found = counted({ dIn, dOut, r, alpha });
    controls.forEach((own) => own.show());
    const [named, about] = Object.entries(LAYERS).find(([, own]) => own.dIn === dIn && own.dOut === dOut) ?? ["", { says: "Sizes of your own." }];
    real.set(named);
    says.textContent = about.says;
    draw();
    const fewer = found.saving > 1, times = fewer ? found.saving : 1 / found.saving;
    const ratio = found.saving === 1 ? "as many" : `${times < 10 ? times.toFixed(times < 1.05 ? 3 : 1) : many(Math.round(times))} times ${fewer ? "fewer" : "as many"}`;
    const border = found.breakEven ? `fewer than W₀ only up to r = ${many(found.breakEven)}` : "at no rank fewer than W₀";
    summary.textContent = `A and B have ${many(found.lora)} parameters, W₀ has ${many(found.weight)}: ${ratio}${fewer ? "" : `, and ${border}`}.`;
    formula.replaceChildren(...[`h [${many(dOut)}] = `, `W₀ [${many(dOut)} × ${many(dIn)}] x [${many(dIn)}] `, `+ ${short(found.scale)} · B [${many(dOut)} × ${many(r)}] `, `(A [${many(r)} × ${many(dIn)}] x)`].map((part) => h("span", {}, part)));
    scaling.textContent = `α/r = ${many(alpha)}/${many(r)} = ${short(found.scale)} scales the update. rsLoRA takes α/√r = ${short(found.rsScale)}.`;
    const more = (100 * found.flops.lora) / found.flops.weight;
    const added = `+${more < 10 ? more.toPrecision(2) : Math.round(more)}%`;
    const texts = [[many(found.weight), many(found.lora)], [si(found.bytes.weight, "B"), si(found.bytes.lora, "B")], [si(found.flops.weight), `${si(found.flops.lora)} (${added})`]];
    texts.forEach((row, i) => row.forEach((text, j) => (rows[i].cells[j].textContent = text)));
    body.dataset.counted = JSON.stringify(found);
    live.say(`W₀ is ${many(dOut)} by ${many(dIn)}, A ${many(r)} by ${many(dIn)}, B ${many(dOut)} by ${many(r)}. ${summary.textContent} FLOPs of a token: ${added}. ${scaling.textContent}`);
  }

  /** The three matrices on one scale: A as wide as W0 and under it, B as high and at its right. */
  function draw() {
    const { d_in: dIn, d_out: dOut, r } = state, room = Math.max(120, drawing.clientWidth) - LEFT - GAP - MARGIN;
    const pixels = Math.min(room / (dIn + r), (HEIGHT - GAP) / (dOut + r)), thick = (n) => Math.max(1, Math.round(n * pixels));
    const [width, height, thin] = [dIn, dOut, r].map(thick), right = LEFT + width + GAP, under = TOP + height + GAP;
    const matrix = (kind, x, y, wide, high) => s("rect", { class: `layer-${kind}`, x, y, width: wide, height: high });
    const letter = (text, x, y, anchor = "middle") => s("text", { x, y, "text-anchor": anchor }, text);
    drawing.setAttribute("height", String(Math.ceil(under + thin + MARGIN)));
    drawing.replaceChildren(
      matrix("frozen", LEFT, TOP, width, height),
      matrix("trained", LEFT, under, width, thin),
      matrix("trained", right, TOP, thin, height),
      ...(width > 30 && height > 24 ? [letter("W₀", LEFT + width / 2, TOP + height / 2 + 6)] : []),
      letter("A", LEFT - 6, under + thin / 2 + 6, "end"),
      letter("B", Math.max(right + thin / 2, LEFT + 8), TOP - 7));
    const small = [[r, "A and B are"], [dIn, "W₀ and A are"], [dOut, "W₀ and B are"]].filter(([n]) => n * pixels < 1);
    const said = small.map(([n, which]) => `${which} drawn 1 pixel thick and would be ${Number((n * pixels).toPrecision(2))}`);
    scale.textContent = said.length ? `To scale, except: ${said.join("; ")}.` : "To scale.";
    drawing.setAttribute("aria-label", `W₀, ${many(dOut)} rows by ${many(dIn)} columns; under it A, ${many(r)} rows, as wide; at its right B, ${many(r)} columns, as high. ${scale.textContent}`);
    Object.assign(drawing.dataset, { pixels, width, height, thin });
  }

  function change(changes) {
    state = sane({ ...state, ...changes });
    url.write(state);
    show();
  }
  url.follow(() => {
    state = sane(url.read());
    show();
  });
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(drawing); // not at once: drawing changes its height
  show();
}

/** What can't be is brought to the nearest that can: whole sizes, and a rank that BA can have. */
function sane({ d_in, d_out, r, alpha }) {
  const whole = (value, most) => clamp(Math.round(value), 1, most);
  const sizes = { d_in: whole(d_in, LARGEST.d), d_out: whole(d_out, LARGEST.d) };
  return { ...sizes, r: whole(r, Math.min(sizes.d_in, sizes.d_out)), alpha: clamp(Math.round(100 * alpha) / 100, 0.01, LARGEST.alpha) };
}
