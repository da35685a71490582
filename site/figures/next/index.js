/**
 * The next token: what the model thinks may come next, as bars; what temperature and top-p make of it; and one draw after
 * the other, beside the greedy answer. Chapter 12 has the arithmetic.
 */
import { argmax, probabilities, random, sample } from "../../engine/generate.js";
import { answerField, choice, fresh, h, known, later, latest, model, promptField, sentence, slider, spoken, styles, urlState } from "../common/dom.js";

const ADAPTERS = { base: "the base", sentiment: "sentiment", translation: "French", summarization: "moral", style: "pirate" };
const PROMPTS = ["Tell me a story about a dog.", "Say it like a pirate: Otto had a tiny house near the village.", "Say it in French: The goat finds the apple in the park."];
const SHOWN = 12, MOST = 60;

const percent = (p) => (p === 0 ? "0%" : p < 0.0005 ? "<0.1%" : `${(100 * p).toFixed(1)}%`);
/** A token as it is seen: its spaces and line ends too. @param {string} text */
const seen = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\p{Cc}/gu, "�");

/** @param {HTMLElement} root @param {{base?: string}} [options] `base`: the URL of the model's folder */
export async function mount(root, options = {}) {
  await styles(import.meta.url);
  const client = model(options);
  const start = { prompt: PROMPTS[0], adapter: "base", temperature: 1, topp: 1, seed: 0, drawn: "" };
  const url = urlState("next", start);
  let state = url.read();
  /** @type {{logits: Float32Array, text: string} | undefined} what the model gave for the state */ let now;
  /** @type {string[]} */ let words = [];
  let end = -1, asked = false, queued = false;

  const live = spoken();
  const tries = ["a story", "pirate", "French"].map((text, i) => h("button", { type: "button", onclick: () => change({ prompt: PROMPTS[i], drawn: "" }) }, text));
  const prompt = promptField((text) => change({ prompt: text, drawn: "" }), h("span", { class: "figure-muted" }, "one of:"), ...tries);
  const adapter = choice("Who answers", Object.entries(ADAPTERS).map(([value, text]) => ({ value, text })), state.adapter, (value) => change({ adapter: value, drawn: "" }));
  const temperature = slider("Temperature", "temperature", { min: 0.1, max: 2, step: 0.1 }, (value) => change({ temperature: value }));
  const topP = slider("Top-p", "topp", { min: 0.05, max: 1, step: 0.05 }, (value) => change({ topp: value }));
  const seed = h("input", { type: "number", id: fresh("seed"), name: "seed", min: 0, max: 9999, step: 1, oninput: () => change({ seed: whole(seed.value), drawn: "" }) });
  const rows = Array.from({ length: SHOWN }, row);
  const after = h("p"), sum = h("p", { class: "figure-muted" });
  const drawn = answerField("next-answer", live), greedy = answerField("next-answer", live), answer = drawn.element, last = h("p", { class: "figure-muted figure-number" });
  const draw = h("button", { type: "button", class: "next-draw", onclick: one }, "Draw the next token");
  const over = h("button", { type: "button", onclick: () => change({ drawn: "" }) }, "start over");
  const failed = (error) => [greedy, drawn].forEach((own) => own.failed(error));

  const body = h("div", { class: "next figure-columns" },
    h("div", { class: "figure-left" },
      h("div", {}, ...prompt.parts),
      adapter.element,
      h("div", { class: "figure-sliders" }, ...temperature.parts, ...topP.parts),
      h("div", { class: "next-answers" }, h("span", { class: "figure-label" }, "Drawn so far"), answer,
        h("div", { class: "figure-buttons" }, draw, over, h("label", { for: seed.id }, "seed"), seed), last),
      h("div", {}, h("span", { class: "figure-label" }, `Greedy: the likeliest token each time, ${MOST} at most`), greedy.element)),
    h("div", { class: "figure-right" },
      h("div", {}, h("span", { class: "figure-label" }, `The ${SHOWN} likeliest tokens that may come next`),
        h("table", { class: "next-tokens" },
          h("colgroup", {}, ...["token", "bar", "before", "after"].map((name) => h("col", { class: `next-${name}-column` }))),
          h("thead", {}, h("tr", {}, ...[h("p", {}, "token"), h("p", {}, "probability"), after].map((text, i) => h("th", { scope: "col", colspan: i === 1 && 2 }, text)))),
          h("tbody", {}, ...rows.map((own) => own.element))),
        sum)),
    live.element);
  root.replaceChildren(h("div", { class: "figure-body" }, body));

  const ids = () => (state.drawn ? state.drawn.split(".").map(Number) : []);
  const adapters = () => (state.adapter === "base" ? [] : [{ name: state.adapter }]);
  const ended = () => ids().at(-1) === end;

  /** The bars: probabilities at the temperature, and which of them top-p keeps. */
  function bars() {
    if (!now) return;
    const p = probabilities(now.logits, state.temperature), kept = probabilities(now.logits, state.temperature, state.topp);
    const order = [...p.keys()].sort((a, b) => p[b] - p[a] || a - b), first = order.slice(0, SHOWN);
    first.forEach((id, i) => rows[i].show(words[id], p[id], kept[id], state.topp < 1));
    const many = kept.reduce((n, v) => n + Number(v > 0), 0), part = order.slice(0, many).reduce((n, id) => n + p[id], 0), rest = order.slice(SHOWN).reduce((n, id) => n + p[id], 0);
    const cut = state.topp < 1 ? `Top-p ${state.topp} keeps ${many.toLocaleString("en-US")} of ${p.length.toLocaleString("en-US")} tokens, which have ${percent(part)} together; the others can't be drawn. ` : "";
    sum.textContent = `${cut}Not shown: ${(p.length - SHOWN).toLocaleString("en-US")} tokens with ${percent(rest)} together.`;
    body.dataset.shown = JSON.stringify(first.map((id) => [id, p[id], kept[id]]));
    body.dataset.kept = String(many);
  }

  const tell = (before = "") => {
    const [id, p] = JSON.parse(body.dataset.shown)[0];
    live.say(ended() ? `${before}The answer has ended: ${sentence(answer.textContent)}` : `${before}Likeliest next: “${words[id]}” with ${percent(p)}, at temperature ${state.temperature.toFixed(1)}. ${sum.textContent}`);
  };

  /** Draws one token, with the number of the seed's sequence that is its turn. */
  function one() {
    queued = !now;
    if (queued) return; // the bars of the last token aren't there yet: drawn when they are
    const own = ids(), numbers = random(state.seed);
    own.forEach(numbers);
    const id = sample(now.logits, { temperature: state.temperature, topP: state.topp, draw: numbers });
    const p = probabilities(now.logits, state.temperature, state.topp)[id], likeliest = argmax(now.logits);
    last.textContent = `Drawn: “${seen(words[id])}”, which had ${percent(p)}${id === likeliest ? "" : `; the likeliest was “${seen(words[likeliest])}”`}.`;
    change({ drawn: [...own, id].join(".") });
  }

  const look = latest(async (signal) => {
    now = undefined;
    const found = await client.next(state.prompt, ids(), { adapters: adapters(), signal });
    if (!words.length) words = await client.vocabulary();
    now = found;
    answer.textContent = found.text || (ended() ? "(nothing: the end-of-turn token came first)" : "");
    answer.append(h("span", { class: "next-end" }, ended() ? "<|end|>" : found.text ? "" : "(nothing yet)"));
    if (ids().length >= MOST && !ended()) last.textContent = `That is ${MOST} tokens: start over to draw more.`;
    const focused = document.activeElement === draw;
    draw.disabled = ended() || ids().length >= MOST;
    if (draw.disabled && focused) over.focus();
    answer.dataset.busy = "no";
    bars();
    body.dataset.drawn = state.drawn;
    tell(state.drawn ? `${last.textContent} ` : "");
    if (queued && !draw.disabled) one();
    queued = false;
  }, failed);

  const rewrite = latest(async (signal) => {
    await greedy.ask(client, state.prompt, { adapters: adapters(), maxNewTokens: MOST, signal });
  }, failed);
  const tellLater = later(() => now && tell(), 300);

  function show() {
    prompt.set(state.prompt);
    if (whole(seed.value) !== state.seed || seed.value === "") seed.value = String(state.seed);
    adapter.set(state.adapter);
    temperature.set(state.temperature, state.temperature.toFixed(1));
    topP.set(state.topp, state.topp.toFixed(2));
    after.textContent = state.topp < 1 ? "after top\u2011p" : "";
    over.disabled = !state.drawn;
    if (!state.drawn) last.textContent = "";
  }
  function change(changes) {
    const before = state;
    state = { ...state, ...changes };
    queued = false;
    url.write(state);
    ask(before);
  }
  /** Shows the state, and asks the model what it isn't asked yet. */
  function ask(before = {}) {
    show();
    const same = (...names) => names.every((name) => before[name] === state[name]);
    if (same("prompt", "adapter", "drawn")) {
      bars();
      tellLater();
    } else look();
    if (!same("prompt", "adapter") || !asked) rewrite();
    asked = true;
  }
  const sane = () => {
    const before = now && state;
    state = url.read();
    state.temperature = between(state.temperature, 0.1, 2);
    state.topp = between(state.topp, 0.05, 1);
    state.seed = whole(state.seed);
    if (!known(ADAPTERS, state.adapter)) state.adapter = start.adapter;
    const own = state.drawn.split(".").filter((id) => /^\d{1,4}$/.test(id) && Number(id) < 1024).slice(0, MOST);
    state.drawn = own.join(".");
    last.textContent = "";
    ask(before);
  };
  url.follow(sane);
  client.ready.then((config) => (end = config.eos_token_id), () => {});
  sane(); // the model is asked at once, and answers when it is there
  await client.ready.catch(failed);
}

const between = (value, low, high) => Math.min(high, Math.max(low, value));
/** A seed: a whole number from 0 to 9999. */
const whole = (value) => between(Math.floor(Number(value)) || 0, 0, 9999);

/** One token's row: its text, its bar, its probability, and what top-p makes of that. */
function row() {
  const token = h("th", { scope: "row" }), bar = h("div", { style: "width: 0" });
  const before = h("td", { class: "figure-number" }), after = h("td", { class: "figure-number" });
  const element = h("tr", {}, token, h("td", { class: "next-bar", "aria-hidden": "true" }, bar), before, after);
  return {
    element,
    show(text, p, kept, cut) {
      token.textContent = seen(text);
      bar.style.width = `${100 * p}%`;
      element.className = kept > 0 ? "next-kept" : "next-cut";
      before.textContent = percent(p);
      after.textContent = !cut ? "" : kept > 0 ? percent(kept) : "cut";
    },
  };
}
