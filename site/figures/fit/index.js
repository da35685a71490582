/**
 * Will it fit? A training step's memory by part against what cards have, for a model of a list or a pasted config.json.
 * Chapters 1 and 6 have the arithmetic; estimate.js follows the step; the dots are steps that a GPU ran.
 */
import { choice, fresh, h, json, later, spoken, styles, urlState } from "../common/dom.js";
import { counts, firstThatFits, GB, METHODS, needed, OPTIMIZERS, predict, shape, SETUP, Unknown } from "./estimate.js";

const CARDS = [8, 12, 16, 24, 40, 48, 80, 141];
const OWN = "a config.json of your own";
const NAMES = { full: "full", lora: "LoRA", qlora: "QLoRA" };
const TARGETS = {
  "all-linear": { text: "all linear", value: "all-linear" },
  "q,k,v,o": { text: "q, k, v, o", value: ["q_proj", "k_proj", "v_proj", "o_proj"] },
  "q,v": { text: "q, v", value: ["q_proj", "v_proj"] },
  mlp: { text: "MLP", value: ["gate_proj", "up_proj", "down_proj"] },
};
const DTYPES = { bfloat16: "bfloat16", float16: "float16", float32: "float32" };
/** What the bars tell apart: the estimator's kinds in groups. */
const GROUPS = [
  ["weights", "weights", ["weights"]],
  ["adapters", "adapters", ["adapters"]],
  ["gradients", "gradients", ["gradients"]],
  ["optimizer", "optimizer states", ["optimizer"]],
  ["activations", "activations", ["attention", "MLP", "norms", "LoRA", "between blocks", "embedding"]],
  ["logits", "logits and loss", ["logits and loss"]],
  ["passing", "temporaries and workspaces", ["backward in passing", "kernels' workspace"]],
];
const FIELDS = ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings", "attention_bias", "mlp_bias"];
const START = {
  model: "Llama-2-7B", method: "lora", r: 8, targets: "all-linear", batch: 4, length: 512, dtype: "bfloat16", adapters: "float32",
  optimizer: "adamw", checkpointing: "no", attention: "sdpa", double: "yes", prepared: "no", card: 24, config: "", part: "",
};
const LIMITS = { r: [1, 1024], batch: [1, 512], length: [1, 131_072], card: [1, 1000] };

/** Bytes as GB with the digits that matter. */
function gb(bytes) {
  const size = bytes / GB;
  if (size > 0 && size < 0.005) return "under 0.01";
  return size >= 99.95 ? Math.round(size).toLocaleString("en-US") : size.toFixed(size < 0.995 ? 2 : 1);
}
/** A number of parameters in words: 6.74 billion, 20 million, 9,216. */
function many(count) {
  const [unit, word, digits] = count >= 1e8 ? [1e9, " billion", 2] : count >= 1e5 ? [1e6, " million", 1] : [1, "", 0];
  const fixed = unit === 1e9 ? { minimumFractionDigits: 2 } : {};
  return `${(count / unit).toLocaleString("en-US", { maximumFractionDigits: digits, ...fixed })}${word}`;
}
const percent = (ratio) => `${Math.abs(100 * ratio).toFixed(1)}%`;

/** The estimator's settings of the figure's state. */
const setupOf = (state) => ({
  method: state.method, r: state.r, target_modules: TARGETS[state.targets].value, batch: state.batch, length: state.length, dtype: state.dtype,
  adapter_dtype: state.adapters === "float32" ? "float32" : state.dtype, optimizer: state.optimizer, checkpointing: state.checkpointing === "yes",
  attention: state.attention, double: state.double === "yes", prepared: state.prepared === "yes",
});

/** The same question for the Python. */
function command(state) {
  const words = ["python -m utils.profiling.fit", `--model ${state.model === OWN ? "FOLDER_OR_HUB_ID" : state.model}`, `--method ${state.method}`];
  const { target_modules: targets, adapter_dtype } = setupOf(state);
  if (state.method !== "full") {
    words.push(`--r ${state.r}`, `--targets ${typeof targets === "string" ? targets : targets.join(",")}`);
    if (adapter_dtype !== SETUP.adapter_dtype) words.push(`--adapter-dtype ${adapter_dtype}`);
  }
  words.push(`--batch ${state.batch}`, `--length ${state.length}`);
  if (state.dtype !== SETUP.dtype) words.push(`--dtype ${state.dtype}`);
  if (state.optimizer !== SETUP.optimizer) words.push(`--optimizer ${state.optimizer}`);
  if (state.attention !== SETUP.attention) words.push(`--attention ${state.attention}`);
  if (state.checkpointing === "yes") words.push("--checkpointing");
  if (state.method === "qlora" && state.double === "no") words.push("--no-double");
  if (state.method === "qlora" && state.prepared === "yes") words.push("--prepared");
  return [...words, `--card ${state.card}`].join(" ");
}

/** Settings that a record's row and the state have in common, as one text; what a method doesn't use is left out. */
function keyOf(model, setup) {
  const all = { ...SETUP, ...setup };
  const used = ["method", "batch", "length", "dtype", "optimizer", "checkpointing", "attention"];
  if (all.method !== "full") used.push("target_modules", "r", "adapter_dtype", "lora_dropout");
  if (all.method === "qlora") used.push("double", "prepared");
  return JSON.stringify([model, ...used.map((name) => (Array.isArray(all[name]) ? [...all[name]].sort() : all[name]))]);
}

/** The state that shows a record's row, null where the controls can't say it. */
function stateOf({ model, setup }) {
  const all = { ...SETUP, ...setup }, sorted = (value) => JSON.stringify(Array.isArray(value) ? [...value].sort() : value);
  const targets = Object.keys(TARGETS).find((name) => sorted(TARGETS[name].value) === sorted(all.target_modules));
  if (!targets || all.lora_dropout) return null;
  const yes = (value) => (value ? "yes" : "no");
  return {
    model, method: all.method, r: all.r, targets, batch: all.batch, length: all.length, dtype: all.dtype,
    adapters: all.adapter_dtype === "float32" ? "float32" : "same", optimizer: all.optimizer, checkpointing: yes(all.checkpointing),
    attention: all.attention, double: yes(all.double), prepared: yes(all.prepared),
  };
}

const inWords = (changes) =>
  [changes.method && NAMES[changes.method], changes.checkpointing && "checkpointing", changes.batch && "one sequence at a time"].filter(Boolean).join(" and ");

/** @param {HTMLElement} root @param {Partial<typeof START>} [options] where the controls start */
export async function mount(root, options = {}) {
  const [{ models, measured }] = await Promise.all([json("models.json", import.meta.url), styles(import.meta.url)]);
  const records = new Map(measured.map((row) => [keyOf(row.model, row.setup), row]));
  const start = { ...START, ...options };
  const url = urlState("fit", start);
  let state = url.read(), bars = [];

  const live = spoken();
  const select = (label, name, values) => {
    const element = h("select", { id: fresh(name), "data-control": name, onchange: () => change({ [name]: element.value }) }, ...values.map(([value, text]) => h("option", { value }, text)));
    return { parts: [h("label", { for: element.id }, label), element], element };
  };
  const number = (label, name) => {
    const [min, max] = LIMITS[name];
    const element = h("input", { type: "number", id: fresh(name), min, max, step: 1, inputmode: "numeric", "data-control": name, oninput: () => element.checkValidity() && element.value && change({ [name]: Number(element.value) }), onchange: () => show() });
    return { parts: [h("label", { for: element.id }, label), element], element };
  };
  const check = (label, name) => {
    const element = h("input", { type: "checkbox", id: fresh(name), "data-control": name, onchange: () => change({ [name]: element.checked ? "yes" : "no" }) });
    return { whole: h("span", { class: "fit-check" }, element, h("label", { for: element.id }, label)), element };
  };
  const options_ = (names) => names.map((name) => [name, name]);
  const fields = {
    model: select("Model", "model", options_([...Object.keys(models), OWN])),
    r: number("Rank r", "r"), batch: number("Sequences", "batch"), length: number("Tokens each", "length"),
    targets: select("LoRA on", "targets", Object.entries(TARGETS).map(([value, { text }]) => [value, text])),
    dtype: select("Weights in", "dtype", Object.entries(DTYPES)),
    adapters: select("Adapters in", "adapters", [["float32", "float32 (PEFT's default)"], ["same", "the weights' dtype"]]),
    optimizer: select("Optimizer", "optimizer", options_(OPTIMIZERS)),
    attention: select("Attention", "attention", [["sdpa", "sdpa (fused)"], ["eager", "eager"]]),
    card: select("Your card", "card", CARDS.map((card) => [card, `${card} GB`])),
  };
  const checks = { checkpointing: check("gradient checkpointing", "checkpointing"), double: check("double quantization", "double"), prepared: check("prepare_model_for_kbit_training", "prepared") };
  const method = choice("Method", METHODS.map((value) => ({ value, text: NAMES[value] })), state.method, (value) => change({ method: value }));
  const paste = h("textarea", { id: fresh("config"), rows: 4, spellcheck: "false", placeholder: '{"model_type": "qwen3", "hidden_size": 4096, …}', oninput: () => later_() });
  const later_ = later(() => read(paste.value), 200);
  const pasted = h("div", {}, h("label", { class: "figure-label", for: paste.id }, "Its config.json"), paste);

  const verdict = h("p", { class: "fit-verdict" }), cure = h("p", { class: "fit-cure" }), dots = h("p", { class: "figure-muted" });
  const chart = h("div", { class: "fit-chart", role: "img" }), legend = h("tbody"), call = h("code", { class: "fit-call" });
  const table = h("table", { class: "fit-table" }, h("caption", { class: "figure-label" }, "At the peak"), legend);
  const another = h("button", { type: "button", onclick: () => {
    const known = measured.map(stateOf).filter(Boolean);
    change(known[Math.floor(Math.random() * known.length)]);
  } }, "show a measured step");
  const body = h("div", { class: "fit" },
    h("div", { class: "fit-left" },
      h("div", { class: "fit-fields" }, ...fields.model.parts, ...fields.card.parts),
      pasted, method.element,
      h("div", { class: "fit-fields" }, ...["r", "targets", "batch", "length", "dtype", "adapters", "optimizer", "attention"].flatMap((name) => fields[name].parts)),
      h("div", { class: "fit-checks" }, ...Object.values(checks).map(({ whole }) => whole)),
      h("div", { class: "figure-buttons" }, another)),
    h("div", { class: "fit-right" }, h("div", { class: "fit-answer" }, verdict, cure), h("div", { class: "fit-bars" }, chart, dots), table,
      h("p", { class: "figure-muted" }, "One GPU, one step with all its sequences at once. The hatched end of a bar is the margin for the allocator's gaps (8%) and CUDA's own 0.81 GB. FSDP, ZeRO and offloading aren't followed here. The same question in Python:"), call, live.element));
  root.replaceChildren(h("div", { class: "figure-body" }, body));

  /** The pasted text: what memory depends on goes into the URL. */
  function read(text) {
    try {
      const whole = JSON.parse(text), inner = whole?.text_config && !whole.hidden_size, config = inner ? whole.text_config : whole;
      shape(config);
      change({ part: inner ? String(whole.model_type) : "", config: JSON.stringify(Object.fromEntries(FIELDS.filter((name) => config[name] !== undefined && config[name] !== null).map((name) => [name, config[name]]))) });
    } catch (error) {
      url.write((state = { ...state, config: "", part: "" }));
      if (!text.trim()) return show();
      refuse(reason(error));
    }
  }
  const reason = (error) => (error instanceof SyntaxError ? "This isn't JSON: paste the whole config.json, braces included." : error.message);
  function refuse(text, asks = false) {
    bars = [];
    body.dataset.needs = "";
    verdict.replaceChildren(h("span", { class: asks ? "" : "figure-error" }, text));
    cure.textContent = "The Python below runs any causal language model of transformers on the meta device, without its weights.";
    dots.textContent = "";
    legend.replaceChildren();
    chart.replaceChildren();
    table.hidden = chart.hidden = true;
    call.textContent = command(state);
    live.say(`${text} ${cure.textContent}`);
  }

  function show() {
    const own = state.model === OWN, lora = state.method !== "full", quantized = state.method === "qlora";
    for (const [name, { element }] of Object.entries(fields)) if (document.activeElement !== element || element.type !== "number") element.value = state[name];
    for (const [name, { element }] of Object.entries(checks)) element.checked = state[name] === "yes";
    method.set(state.method);
    pasted.hidden = !own;
    fields.r.element.disabled = fields.targets.element.disabled = fields.adapters.element.disabled = !lora;
    checks.double.whole.hidden = checks.prepared.whole.hidden = !quantized;
    call.textContent = command(state);
    if (own && !state.config) return refuse("Paste the config.json of a Llama, Mistral, Qwen2 or Qwen3 model.", true);
    try {
      if (own && document.activeElement !== paste) paste.value = JSON.stringify(JSON.parse(state.config), null, 1);
      answer(own ? JSON.parse(state.config) : models[state.model]);
    } catch (error) {
      if (!(error instanceof Unknown || error instanceof SyntaxError)) throw error;
      refuse(reason(error));
    }
  }

  function answer(config) {
    const setup = setupOf(state), room = state.card * GB;
    bars = METHODS.map((name) => {
      const own = { ...setup, method: name }, found = predict(config, own);
      return { name, chosen: name === state.method, ...found, needs: needed(found.peak), record: records.get(keyOf(state.model, own)) };
    });
    const mine = bars.find(({ chosen }) => chosen), fits = mine.needs <= room, { base, lora } = counts(config, setup);
    const part = state.model === OWN && state.part ? `. This is the language part of a ${state.part} model alone: what it has beside that, such as a vision tower, comes on top` : "";
    const train = state.method === "full" ? `all ${many(base)} parameters train` : `${many(lora)} train beside ${many(base)} parameters`;
    body.dataset.needs = String(mine.needs);
    body.dataset.peak = String(mine.peak);
    table.hidden = chart.hidden = false;
    verdict.replaceChildren(h("strong", { class: fits ? "fit-yes" : "fit-no" }, fits ? "It fits. " : "It doesn't fit. "), `The step needs ${gb(mine.needs)} GB; the card has ${state.card}.`);
    cure.replaceChildren(...advice(config, setup, mine, room, fits));
    const largest = GROUPS.map(([, text, kinds]) => [text, kinds.reduce((sum, kind) => sum + (mine.parts[kind] ?? 0), 0)]);
    legend.replaceChildren(
      ...GROUPS.map(([name], i) => [name, ...largest[i]]).filter(([, , size]) => size > 0).map(([name, text, size]) => row(name, text, size)),
      row("margin", "margin: gaps and CUDA's own", mine.needs - mine.peak));
    table.caption.textContent = `At the peak, in the ${mine.phase === "optimizer" ? "optimizer's step" : `${mine.phase} pass`}: ${gb(mine.peak)} GB; ${train}${part}`;
    const said = bars.filter(({ record }) => record).map(({ name, record, peak }) => `${NAMES[name]}: measured ${gb(record.peak)} GB on an ${record.gpu.replace("NVIDIA ", "").split(" ")[0]}, the prediction ${gb(peak)} is ${percent(peak / record.peak - 1)} ${peak < record.peak ? "below" : "above"}`);
    dots.textContent = said.length ? `${said.join(". ")}.` : `No record has this setting. On the ${measured.length} steps that were measured the peak was predicted within 1.3%.`;
    draw();
    const [text] = largest.reduce((best, own) => (own[1] > best[1] ? own : best));
    live.say(`${verdict.textContent}${part.slice(1)}${part && "."} The largest part is ${text}. ${cure.firstChild.textContent} ${dots.textContent}`);
  }

  function row(name, text, size) {
    return h("tr", {}, h("th", { scope: "row" }, h("span", { class: `fit-swatch fit-${name}`, "aria-hidden": "true" }), text), h("td", { class: "figure-number", "data-part": name }, `${gb(size)} GB`));
  }

  /** What to change where it doesn't fit, as in the Python, with a button that does it. */
  function advice(config, setup, mine, room, fits) {
    if (fits) {
      const spare = room - mine.needs;
      return [`${gb(spare)} GB are left.`];
    }
    const found = firstThatFits(config, setup, room);
    if (!found) return ["Not even QLoRA with checkpointing and one sequence fits: take a smaller model, shorter sequences or a larger card."];
    const changes = { ...found.changes };
    if (changes.checkpointing) changes.checkpointing = "yes";
    return [`It would with ${inWords(found.changes)} (${gb(found.needed)} GB). `, h("button", { type: "button", class: "fit-apply", onclick: () => change(changes) }, "change that")];
  }

  /** Three bars, the cards' lines, and a dot where a GPU ran that step. */
  function draw() {
    const width = Math.max(260, chart.clientWidth || 400), left = 54, right = 6, tall = 30, gap = 16, top = 20;
    const mine = bars.find(({ chosen }) => chosen), plot = width - left - right;
    const end = Math.max((mine.needs * plot) / (plot - 62), 1.12 * state.card * GB);
    const x = (bytes) => left + (Math.min(bytes, end) / end) * plot, height = top + bars.length * (tall + gap);
    const cards = [...new Set([...CARDS, state.card])].filter((card) => card * GB < end).sort((a, b) => a - b);
    const out = [`<defs><pattern id="fit-hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><line class="fit-hatch" x1="0" x2="0" y1="0" y2="6"/></pattern></defs>`];
    bars.forEach((bar, i) => {
      const y = top + i * (tall + gap) + 6;
      let at = 0;
      out.push(`<text class="${bar.chosen ? "fit-chosen" : ""}" x="0" y="${y + tall / 2 + 5}">${NAMES[bar.name]}</text><g class="${bar.chosen ? "" : "fit-other"}">`);
      for (const [name, , kinds] of GROUPS) {
        const size = kinds.reduce((sum, kind) => sum + (bar.parts[kind] ?? 0), 0);
        if (at < end && size) out.push(`<rect class="fit-${name}" x="${x(at).toFixed(1)}" y="${y}" width="${Math.max(0, x(at + size) - x(at)).toFixed(1)}" height="${tall}"/>`);
        at += size;
      }
      if (at < end) out.push(`<rect class="fit-margin" fill="url(#fit-hatch)" x="${x(at).toFixed(1)}" y="${y}" width="${(x(bar.needs) - x(at)).toFixed(1)}" height="${tall}"/>`);
      out.push("</g>");
    });
    let last = -100;
    for (const card of cards) {
      const at = x(card * GB), own = card === state.card;
      out.push(`<line class="${own ? "fit-own" : "fit-card"}" x1="${at.toFixed(1)}" x2="${at.toFixed(1)}" y1="${top - 2}" y2="${height}"/>`);
      const near = Math.abs(at - x(state.card * GB)) < 30 && !own;
      if (!near && at - last > 24) out.push(`<text class="${own ? "fit-chosen" : ""}" x="${Math.min(at, width - 20).toFixed(1)}" y="12" text-anchor="middle">${card}${own ? " GB" : ""}</text>`), (last = at);
    }
    bars.forEach((bar, i) => {
      const y = top + i * (tall + gap) + 6;
      const over = bar.needs > end, text = `${gb(bar.needs)} GB${over ? " →" : ""}`, wide = 7.5 * text.length;
      const inside = x(bar.needs) + wide > width - right;
      out.push(`<text class="fit-needs" x="${(inside ? width - right - 4 : x(bar.needs) + 5).toFixed(1)}" y="${y + tall / 2 + 5}" text-anchor="${inside ? "end" : "start"}">${text}</text>`);
      if (bar.record && bar.record.peak < end) out.push(`<circle class="fit-dot" cx="${x(bar.record.peak).toFixed(1)}" cy="${y + tall / 2}" r="5"/>`);
    });
    chart.innerHTML = `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" aria-hidden="true">${out.join("")}</svg>`;
    chart.setAttribute("aria-label", `Memory of a step, with this setting's other choices: ${bars.map((bar) => `${NAMES[bar.name]} ${gb(bar.needs)} GB${bar.record ? `, measured peak ${gb(bar.record.peak)}` : ""}`).join("; ")}. Lines: cards of ${cards.join(", ")} GB; yours has ${state.card}.`);
  }

  function change(update) {
    state = sane({ ...state, ...update });
    url.write(state);
    show();
  }
  function sane(found) {
    const known = { model: [...Object.keys(models), OWN], method: METHODS, targets: Object.keys(TARGETS), dtype: Object.keys(DTYPES), adapters: ["float32", "same"], optimizer: OPTIMIZERS, attention: ["sdpa", "eager"] };
    for (const [name, values] of Object.entries(known)) if (!values.includes(found[name])) found[name] = start[name];
    for (const [name, [least, most]] of Object.entries(LIMITS)) found[name] = Math.round(Math.min(most, Math.max(least, Number(found[name]) || start[name])));
    if (!CARDS.includes(found.card)) found.card = start.card;
    return found;
  }
  const go = () => {
    state = sane(url.read());
    show();
  };
  addEventListener("hashchange", () => location.hash.startsWith("#fit") && go());
  let before = 0;
  new ResizeObserver(([{ contentRect: { width } }]) => {
    if (bars.length && Math.abs(width - before) > 1) draw();
    before = width;
  }).observe(chart);
  go();
}
