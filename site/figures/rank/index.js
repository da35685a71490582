/**
 * The rank that talks: chapter 2's update by full fine-tuning, cut to its first r singular directions, beside the one
 * that LoRA trained at rank 8. What is left of the skill is read in the answer.
 */
import { answerField, any, choice, fresh, h, json, known, later, latest, model, promptField, sentence, signed, slider, spoken, styles, urlState } from "../common/dom.js";

const MODULES = ["q", "k", "v", "o", "gate", "up", "down"], BLOCKS = ["0", "1", "2", "3"];
const MOST = 32;
const UPDATES = {
  full: { text: "full fine-tuning", says: "Full fine-tuning spread its update over all directions.", folder: new URL("update/", import.meta.url).href },
  lora: { text: "LoRA trained at r = 8", says: "LoRA was trained at r = 8: more directions than 8 there aren't.", folder: "../adapters/style/" },
};
const place = (block, module) => `model.layers.${block}.${"qkvo".includes(module) ? "self_attn" : "mlp"}.${module}_proj`;

/** @param {HTMLElement} root @param {{base?: string, update?: string}} [options] `update`: "full" or "lora" */
export async function mount(root, options = {}) {
  const beside = (file) => json(file, import.meta.url);
  const [examples, { spectra, right: recorded, chapter }] = await Promise.all([beside("examples.json"), beside("spectra.json"), styles(import.meta.url)]);
  const client = model(options);
  const start = { update: options.update ?? "full", rank: 8, alpha: 1, blocks: BLOCKS.join(""), modules: MODULES.join("."), layer: place("1", "up"), prompt: examples[0].prompt };
  const url = urlState("rank", start);
  let state = url.read();

  const live = spoken();
  const another = h("button", { type: "button", onclick: () => change({ prompt: any(examples).prompt }) }, "another held-out prompt");
  const prompt = promptField((text) => change({ prompt: text }), another);
  const answer = answerField("rank-answer", live);
  const rank = slider("Rank r", "rank", { min: 0, max: MOST, step: 1 }, (value) => change({ rank: value }));
  const alpha = slider("alpha ×", "alpha", { min: 0, max: 3, step: 0.1 }, (value) => change({ alpha: value }));
  const update = choice("The update of", Object.entries(UPDATES).map(([value, { text }]) => ({ value, text })), state.update, (value) => change({ update: value }));
  const layer = h("select", { id: fresh("layer"), onchange: () => change({ layer: layer.value }) }, ...BLOCKS.flatMap((block) => MODULES.map((module) => h("option", { value: place(block, module) }, `block ${block}, ${module}_proj`))));
  const chart = h("div", { role: "img", class: "figure-drawing" }), energy = h("p", { class: "figure-muted" });
  const modules = boxes("Layers", MODULES.map((name) => ({ value: name, text: `${name}_proj` })), (found) => change({ modules: found.join(".") }));
  const blocks = boxes("Blocks", BLOCKS.map((name) => ({ value: name, text: name })), (found) => change({ blocks: found.join("") }));
  const bar = h("div", { style: "width: 0" }), byRank = h("div", { role: "img", class: "figure-drawing" }), matched = h("p", { class: "figure-number" }), note = h("p", { class: "figure-muted" });

  const body = h("div", { class: "rank figure-columns" },
    h("div", { class: "figure-left" },
      h("div", { class: "rank-sliders figure-sliders" }, ...rank.parts, ...alpha.parts),
      h("div", {}, update.element, note),
      h("div", {}, h("label", { class: "figure-label", for: layer.id }, "Singular values of the update, largest first"), layer, chart, energy),
      h("div", {}, modules.element, blocks.element)),
    h("div", { class: "figure-right" },
      h("div", { class: "rank-prompt" }, ...prompt.parts),
      h("div", { class: "rank-answers" }, h("span", { class: "figure-label" }, "Base and cut update answer"), answer.element),
      h("div", {}, h("span", { class: "figure-label" }, `Exact match on ${examples.length} held-out prompts`), h("div", { class: "figure-meter rank-match", "aria-hidden": "true" }, bar), matched),
      h("div", {}, h("span", { class: "figure-label" }, "Cut to rank r, the full update loses the skill; LoRA's keeps it from 4 on"), byRank, h("p", { class: "figure-muted" }, "Right of 40, by rank: the lines were recorded with PyTorch at alpha × 1 in all layers; the ring is your setting, computed here. ", `On the ${chapter.prompts} prompts of chapter 2, which begin with these, full fine-tuning cut to rank 8 has ${chapter.right[8]} right, to 16 ${chapter.right[16]}, to 32 ${chapter.right[32]}.`)),
      live.element));
  root.replaceChildren(h("div", { class: "figure-body" }, body));

  const mix = () => ({
    adapters: state.rank === 0 ? [] : [{ url: UPDATES[state.update].folder, rank: state.rank, weight: state.alpha }],
    layers: [state.blocks.split("").map((block) => `layers.${block}`), state.modules.split(".").filter(Boolean).map((name) => `${name}_proj`)],
  });

  /** The spectrum of one layer: what the rank keeps is coloured. */
  function draw() {
    const values = spectra[state.update][state.layer], shown = values.slice(0, MOST);
    const squares = (some) => some.reduce((sum, value) => sum + value * value, 0);
    const share = Math.round((100 * squares(values.slice(0, state.rank))) / squares(values));
    const width = 400, height = 130, left = 34, each = (width - left) / MOST, top = spectra.full[state.layer][0], high = Math.max(top, values[0]);
    const bars = shown.map((value, i) => `<rect class="${i < state.rank ? "rank-kept" : "rank-cut"}" x="${left + i * each + 1}" width="${each - 2}" y="${height - (value / high) * height}" height="${(value / high) * height}"/>`);
    const ticks = [1, 8, 16, 24, 32].map((n) => `<text x="${left + (n - 0.5) * each}" y="${height + 14}" text-anchor="middle">${n}</text>`);
    chart.innerHTML = `<svg viewBox="0 0 ${width} ${height + 18}" aria-hidden="true"><line class="rank-axis" x1="${left}" x2="${width}" y1="${height}" y2="${height}"/>${bars.join("")}${ticks.join("")}<text x="${left - 4}" y="10" text-anchor="end">${high.toPrecision(2)}</text><text x="${left - 4}" y="${height}" text-anchor="end">0</text></svg>`;
    const left_out = values.length - shown.length;
    energy.textContent = `The first ${state.rank} of ${values.length} hold ${share}% of this update's energy${left_out > 0 ? ` (${left_out} smaller ones aren't drawn)` : ""}.`;
    chart.setAttribute("aria-label", `Singular values from ${values[0].toPrecision(2)} down; ${energy.textContent}`);
    body.dataset.energy = String(share);
  }

  const tell = () => live.say(`Rank ${state.rank} of ${UPDATES[state.update].text}. The answer: ${sentence(answer.element.textContent)} ${body.dataset.right ? matched.textContent : ""}`);
  const rewrite = latest(async (signal) => {
    await answer.ask(client, state.prompt, { ...mix(), signal });
    tell();
  }, answer.failed);

  /** Exact match by rank as PyTorch measured it with both whole updates, and where the sliders stand now. */
  function curves(right) {
    const width = 400, height = 120, left = 34, x = (r) => left + (r * (width - left - 8)) / MOST, y = (n) => height - (n / examples.length) * (height - 8);
    const line = ([kind, points]) => `<polyline class="rank-curve rank-${kind}" points="${Object.entries(points).map(([r, n]) => `${x(r)},${y(n)}`).join(" ")}"/>`;
    const ticks = [0, 8, 16, 24, 32].map((r) => `<text x="${x(r)}" y="${height + 14}" text-anchor="middle">${r}</text>`);
    const names = `<text class="rank-lora" x="${x(9)}" y="${y(40) + 4}">LoRA trained at r = 8</text><text class="rank-full" x="${x(17)}" y="${y(20)}">full fine-tuning</text>`;
    const now = right === undefined ? "" : `<circle class="rank-now" cx="${x(state.rank)}" cy="${y(right)}" r="6"/>`;
    byRank.innerHTML = `<svg viewBox="0 0 ${width} ${height + 18}" aria-hidden="true"><line class="rank-axis" x1="${left}" x2="${width}" y1="${height}" y2="${height}"/>${Object.entries(recorded).map(line).join("")}${names}${ticks.join("")}<text x="${left - 4}" y="${y(40) + 4}" text-anchor="end">40</text><text x="${left - 4}" y="${height}" text-anchor="end">0</text>${now}</svg>`;
    byRank.setAttribute("aria-label", `Right of 40 by rank. Full fine-tuning cut to rank 8: ${recorded.full[8]}, to 16: ${recorded.full[16]}, to 32: ${recorded.full[32]}. LoRA trained at rank 8: ${recorded.lora[8]}, cut to 4: ${recorded.lora[4]}, to 2: ${recorded.lora[2]}.`);
  }

  const score = latest(async (signal) => {
    const show = ({ right, total }, done) => {
      bar.style.width = `${(100 * right) / examples.length}%`;
      matched.textContent = done ? `${right} of ${total} right` : `${right} right of ${total} so far`;
    };
    const onToken = (part) => show(part, false);
    const done = await client.score(examples, { ...mix(), signal, onToken });
    show(done, true);
    curves(done.right);
    body.dataset.right = String(done.right);
    tell();
  }, answer.failed);
  const scoreLater = later(score, 350);

  function show(changed) {
    prompt.set(state.prompt);
    rank.set(state.rank, String(state.rank));
    alpha.set(state.alpha, signed(state.alpha, 1));
    update.set(state.update);
    note.textContent = UPDATES[state.update].says;
    layer.value = state.layer;
    modules.set(state.modules.split("."));
    blocks.set(state.blocks.split(""));
    draw();
    if (changed.every((key) => key === "layer")) return;
    rewrite();
    if (changed.every((key) => key === "prompt")) return;
    delete body.dataset.right;
    curves();
    scoreLater();
  }
  function change(changes) {
    state = { ...state, ...changes };
    url.write(state);
    show(Object.keys(changes));
  }
  const sane = () => {
    state = url.read();
    state.rank = Math.round(Math.min(MOST, Math.max(0, state.rank)));
    state.alpha = Math.min(3, Math.max(0, state.alpha));
    if (!known(UPDATES, state.update)) state.update = start.update;
    if (!known(spectra.full, state.layer)) state.layer = start.layer;
    show(Object.keys(state));
  };
  url.follow(sane);
  sane(); // the model is asked at once, and answers when it is there
  await client.ready.catch(answer.failed);
}

/** Several of several, as check boxes. */
function boxes(legend, choices, changed) {
  const inputs = choices.map(({ value }) => h("input", { type: "checkbox", value, id: fresh("box"), onchange: () => changed(inputs.filter((own) => own.checked).map((own) => own.value)) }));
  const labels = choices.map(({ text }, i) => h("label", { for: inputs[i].id }, inputs[i], text));
  const element = h("fieldset", { class: "rank-layers" }, h("legend", {}, legend), h("div", {}, ...labels));
  return { element, set: (wanted) => inputs.forEach((input) => (input.checked = wanted.includes(input.value))) };
}
