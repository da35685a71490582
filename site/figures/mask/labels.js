/**
 * A conversation on its way to labels: a chat template writes it as text, the tokenizer cuts that into tokens, and a mask
 * says which of them the loss counts. The templates are the tiny model's own and those that TRL ships for training.
 */
import { Tokenizer } from "../../engine/tokenizer.js";

/** The label that cross-entropy skips. */
export const IGNORED = -100;

/**
 * @typedef {{role: "system" | "user" | "assistant", content: string}} Message
 * @typedef {{role: string, added?: boolean, opening: string, written: string}} Turn
 *   a message as text: what opens it, which is given at inference, and the rest; of the assistant's turns `written` is what
 *   the template's {% generation %} tags enclose. `added`: the template's own, no message of the record
 * @typedef {{text: string, eos: string, tokens: string[], prompt: string, turns: (messages: Message[]) => Turn[]}} Template
 *   `tokens`: special ones that the tiny tokenizer lacks; `prompt`: what opens the assistant's turn at inference
 */

/** White space as Python's str.strip() takes it away; JavaScript's trim() has a slightly different list. */
const OUTER = /^[\p{White_Space}\x1c-\x1f]+|[\p{White_Space}\x1c-\x1f]+$/gu;
export const strip = (text) => text.replace(OUTER, "");

const QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

/** @type {Record<string, Template>} */
export const TEMPLATES = {
  tiny: {
    text: "the tiny model's", eos: "<|end|>", tokens: [], prompt: "<|assistant|>",
    turns(messages) {
      if (messages.some(({ role }) => role === "system")) throw new Error("the tiny model knows the roles user and assistant, not system");
      return messages.map(({ role, content }) => (role === "user"
        ? { role, opening: `<|user|>${content}`, written: "" }
        : { role, opening: "<|assistant|>", written: `${content}<|end|>` }));
    },
  },
  chatml: {
    text: "ChatML (Qwen2.5)", eos: "<|im_end|>", tokens: ["<|im_start|>", "<|im_end|>"], prompt: "<|im_start|>assistant\n",
    turns(messages) {
      const system = messages[0].role === "system" ? [] : [{ role: "system", content: QWEN, added: true }];
      return [...system, ...messages].map(({ role, content, added }) => ({ role, added, opening: `<|im_start|>${role}`, written: `\n${content}<|im_end|>\n` }));
    },
  },
  llama3: {
    text: "Llama 3", eos: "<|eot_id|>", tokens: ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    prompt: "<|start_header_id|>assistant<|end_header_id|>\n\n",
    turns: (messages) => messages.map(({ role, content }, i) => ({
      role,
      opening: `${i ? "" : "<|begin_of_text|>"}<|start_header_id|>${role}<|end_header_id|>\n\n`,
      written: `${strip(content)}<|eot_id|>`,
    })),
  },
};

/** The masks: what each is called, and how one asks TRL for it. */
export const MASKS = {
  answers: { text: "all answers", trl: "a record with messages, assistant_only_loss=True" },
  last: { text: "the last answer", trl: "a record with prompt and completion" },
  all: { text: "every token", trl: "a record with messages, without assistant_only_loss" },
};

/** The tiny model's tokenizer with a template's special tokens. @param {any} json tokenizer.json @param {Template} template */
export function tokenizerFor(json, { tokens }) {
  const first = Math.max(...Object.values(json.model.vocab), ...json.added_tokens.map(({ id }) => id)) + 1;
  return new Tokenizer({ ...json, added_tokens: [...json.added_tokens, ...tokens.map((content, i) => ({ id: first + i, content, special: true }))] });
}

/** How many UTF-8 bytes of a text a token stands for. @param {Tokenizer} tokenizer @param {number} id */
function size(tokenizer, id) {
  return tokenizer.specialIds.has(id) ? bytes(tokenizer.tokens.get(id)) : tokenizer.bytes(id).length;
}
const bytes = (text) => new TextEncoder().encode(text).length;

/**
 * A conversation's tokens and labels, as `assistant_labels` ("answers") and `prompt_completion_labels` ("last") of
 * utils/data make them. Nothing is shifted: the model does that.
 *
 * @param {Tokenizer} tokenizer @param {Template} template @param {Message[]} messages it ends with an answer
 * @param {keyof typeof MASKS} mask @param {boolean} eos whether EOS keeps its label; false: as where it is the padding too
 * @returns {{turns: Turn[], ids: number[], labels: number[], turnOf: number[]}} `turnOf`: whose turn each token is in
 */
export function labelled(tokenizer, template, messages, mask, eos = true) {
  const turns = template.turns(messages), ids = [], wanted = [], turnOf = [];
  turns.forEach(({ role, opening, written }, turn) => {
    const own = tokenizer.encode(opening + written), start = bytes(opening); // every turn opens with a special token
    let at = 0;
    for (const id of own) {
      at += size(tokenizer, id);
      wanted.push(mask === "all" || (mask === "answers" && role === "assistant" && at > start));
      turnOf.push(turn);
    }
    ids.push(...own);
  });
  if (mask === "last") {
    // The answer begins where the ids of the prompt, rendered by itself, and those of the whole part.
    const before = turns.slice(0, -1).map(({ opening, written }) => opening + written).join("") + template.prompt;
    const prompt = tokenizer.encode(before);
    let begin = prompt.findIndex((id, i) => id !== ids[i]);
    if (begin < 0) begin = prompt.length;
    wanted.fill(true, begin);
  }
  const end = tokenizer.special.get(template.eos);
  return { turns, ids, labels: ids.map((id, i) => (wanted[i] && (eos || id !== end) ? id : IGNORED)), turnOf };
}
