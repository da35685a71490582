/**
 * The loss mask: a conversation under a chat template, cut into tokens, and which of them have a label. Chapter 05 makes the
 * labels by hand and holds them to TRL's.
 */
import { choice, fresh, h, json, known, later, spoken, styles, urlState } from "../common/dom.js";
import { IGNORED, labelled, MASKS, strip, TEMPLATES, tokenizerFor } from "./labels.js";

const START = {
  template: "tiny", mask: "answers", eos: "kept", turns: 1, system: 0, says: "Be brief.",
  user: "Say it like a pirate: Emma loved to play in the forest.", answer: "Arr! Emma fancied t' play aboard th' forest.",
  user2: "Is this good or bad? Sam the sheep missed the party today.", answer2: "bad",
};
const EOS = [{ value: "kept", text: "has its label" }, { value: "masked", text: "masked as padding" }];
const FIELDS = { says: "System", user: "User", answer: "Assistant", user2: "User, second turn", answer2: "Assistant, second turn" };
const SPOKEN_BY = { says: "system", user: "user", answer: "assistant", user2: "user", answer2: "assistant" };
const OF = { answers: "the assistant's turns", last: "the last answer", all: "every turn, the user's too" };

/** A token as it is seen: its spaces and line ends too. @param {string} text */
const seen = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\p{Cc}/gu, "�");
const MOST = 300; // characters of one field

/** @param {HTMLElement} root @param {{base?: string}} [options] `base`: the URL of the folder with tokenizer.json */
export async function mount(root, options = {}) {
  const base = new URL(options.base ?? new URL("../../assets/tiny-llama/", import.meta.url).href, document.baseURI).href;
  const [words] = await Promise.all([json("tokenizer.json", base), styles(import.meta.url)]);
  const tokenizers = Object.fromEntries(Object.entries(TEMPLATES).map(([name, template]) => [name, tokenizerFor(words, template)]));
  const url = urlState("mask", START);
  let state = sane(url.read());

  const live = spoken();
  const named = (table) => Object.entries(table).map(([value, { text }]) => ({ value, text }));
  const template = choice("Chat template", named(TEMPLATES), state.template, (value) => change({ template: value }));
  const mask = choice("Labels on", named(MASKS), state.mask, (value) => change({ mask: value }));
  const eos = choice("The EOS token", EOS, state.eos, (value) => change({ eos: value }));
  const trl = h("p", { class: "figure-muted" });
  const system = box("a system message", (on) => change({ system: Number(on) }));
  const second = box("a second turn", (on) => change({ turns: on ? 2 : 1 }));
  const fields = Object.fromEntries(Object.entries(FIELDS).map(([name, text]) => {
    const input = h("textarea", { rows: 1, id: fresh(name), name, spellcheck: "false", maxlength: MOST, oninput: () => change({ [name]: input.value }) });
    return [name, { input, element: h("div", {}, h("label", { class: "figure-label", for: input.id }, text), input) }];
  }));
  const summary = h("p", { class: "mask-summary" }), stops = h("p", { class: "mask-stops" });
  const rows = h("div", { class: "mask-turns" }), learned = h("ul", { class: "mask-learned" });
  const tokens = h("div", {}, h("span", { class: "figure-label" }, "The row's tokens, each with its label under it"), rows,
    h("p", { class: "figure-muted mask-key" }, "␣ is a space, ⏎ a line end, EOS the token that ends a turn. The loss counts the tokens that have a label: each has to be predicted from those before it. The words are cut by the tiny model's tokenizer, to which the template's special tokens are added; Qwen's and Llama's own cut them otherwise."));
  const trained = h("div", {}, h("span", { class: "figure-label" }, "What the model is trained to write"), learned);

  const body = h("div", { class: "mask figure-columns" },
    h("div", { class: "figure-left" },
      h("div", { class: "mask-choices" }, template.element, mask.element, trl, eos.element),
      h("div", { class: "mask-talk" },
        h("div", { class: "mask-boxes" }, system.element, second.element),
        ...Object.values(fields).map(({ element }) => element))),
    h("div", { class: "figure-right" },
      h("div", { class: "mask-said" }, summary, stops),
      tokens,
      trained),
    live.element);
  root.replaceChildren(h("div", { class: "figure-body" }, body));

  /** The names of the fields that are part of the conversation. */
  const used = () => Object.keys(FIELDS).filter((name) => (name === "says" ? state.system : !name.endsWith("2") || state.turns === 2));

  /** The row: its turns, each with its tokens, or why there is none. */
  function compute() {
    const empty = used().find((name) => !strip(state[name]));
    if (empty) throw new Error(`the field “${FIELDS[empty]}” is empty`);
    const messages = used().map((name) => ({ role: SPOKEN_BY[name], content: state[name] }));
    return labelled(tokenizers[state.template], TEMPLATES[state.template], messages, state.mask, state.eos === "kept");
  }

  function show() {
    template.set(state.template);
    mask.set(state.mask);
    eos.set(state.eos);
    system.set(state.system === 1);
    second.set(state.turns === 2);
    for (const [name, { input, element }] of Object.entries(fields)) {
      element.hidden = !used().includes(name);
      if (input.value !== state[name]) input.value = state[name];
    }
    trl.textContent = `In TRL: ${MASKS[state.mask].trl}.`;
    try {
      draw(compute());
    } catch (error) {
      summary.replaceChildren(h("span", { class: "figure-error" }, "This record is refused"));
      stops.textContent = `There is no row to train on: ${error.message}.`;
      tokens.hidden = trained.hidden = true;
      delete body.dataset.ids;
      delete body.dataset.labels;
    }
    tellLater();
  }

  function draw({ turns, ids, labels, turnOf }) {
    const tokenizer = tokenizers[state.template], end = tokenizer.special.get(TEMPLATES[state.template].eos);
    const has = (i) => labels[i] !== IGNORED, many = labels.filter((label) => label !== IGNORED).length;
    const ends = ids.flatMap((id, i) => (id === end ? [i] : [])), endsLearned = ends.filter(has).length;
    body.dataset.ids = JSON.stringify(ids);
    body.dataset.labels = JSON.stringify(labels);
    summary.textContent = `Labels on ${many} of ${ids.length} tokens: ${OF[state.mask]}.`;
    const some = ends.length === 1 ? "The EOS token has a label" : `${endsLearned} of ${ends.length} EOS tokens ${endsLearned === 1 ? "has" : "have"} a label`;
    const no = ends.length === 1 ? "The EOS token has no label" : `None of the ${ends.length} EOS tokens has a label`;
    stops.textContent = endsLearned ? `${some}: the model learns where to stop.` : `${no}: nothing teaches the model to stop, so it stops late or never.`;
    const texts = written(tokenizer, ids);
    rows.replaceChildren(...turns.map(({ role, added }, turn) => h("section", { class: "mask-turn" },
      h("p", { class: "mask-role" }, role, added ? h("span", {}, " (the template adds it)") : ""),
      h("ol", { role: "list", "aria-label": `${role}: tokens, each with its label` }, ...ids.flatMap((id, i) => (turnOf[i] === turn ? [token(texts[i], labels[i], id === end)] : []))))));
    const runs = [];
    labels.forEach((label, i) => {
      if (label !== IGNORED && has(i - 1) && i) runs.at(-1).push(ids[i]);
      else if (label !== IGNORED) runs.push([ids[i]]);
    });
    tokens.hidden = false;
    trained.hidden = !runs.length;
    learned.replaceChildren(...runs.map((own) => h("li", {}, readable(tokenizer, own))));
  }

  const tellLater = later(() => live.say(`${summary.textContent} ${stops.textContent}`), 300);
  function change(changes) {
    state = sane({ ...state, ...changes });
    url.write(state);
    show();
  }
  url.follow(() => {
    state = sane(url.read());
    show();
  });
  show();
}

/** What can't be is brought to what it was at the start; texts have the line ends and the length that a field gives them. */
function sane(state) {
  const text = (name) => [name, [...state[name].replace(/\r\n?/g, "\n")].slice(0, MOST).join("")];
  const one = (name, table) => (known(table, state[name]) ? state[name] : START[name]);
  return {
    ...state,
    ...Object.fromEntries(Object.keys(FIELDS).map(text)),
    template: one("template", TEMPLATES),
    mask: one("mask", MASKS),
    eos: EOS.some(({ value }) => value === state.eos) ? state.eos : START.eos,
    turns: state.turns === 2 ? 2 : 1,
    system: state.system === 1 ? 1 : 0,
  };
}

/** Each token's text; the bytes of a character that is spread over several stand with its last one. */
function written(tokenizer, ids) {
  const decoder = tokenizer.stream();
  return ids.map((id) => (tokenizer.specialIds.has(id) ? tokenizer.tokens.get(id) : decoder.push(id)));
}

/** The text of ids, special tokens and line ends too. */
const readable = (tokenizer, ids) => written(tokenizer, ids).join("").replace(/\n/g, "⏎");

/** One token: its text, and its label under it. */
function token(text, label, end) {
  const none = label === IGNORED, kind = none ? "mask-none" : "mask-label";
  const shown = text ? seen(text) : h("span", { title: "a part of a character, which its last token shows" }, "·");
  return h("li", { class: end ? `${kind} mask-eos` : kind },
    h("span", { class: "mask-token" }, shown, end ? h("span", { class: "mask-end" }, "EOS") : ""),
    h("span", { class: "mask-id" }, none ? "−100" : String(label)));
}

/** A check box with its label. */
function box(text, changed) {
  const input = h("input", { type: "checkbox", id: fresh("box"), onchange: () => changed(input.checked) });
  return { element: h("label", { for: input.id }, input, text), set: (on) => (input.checked = on) };
}
