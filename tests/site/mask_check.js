// node mask_check.js TOKENIZER.json CASES.json: each conversation's ids and labels by each mask, as JSON.
import { readFileSync } from "node:fs";
import { labelled, MASKS, TEMPLATES, tokenizerFor } from "../../site/figures/mask/labels.js";

const [json, cases] = process.argv.slice(2).map((path) => JSON.parse(readFileSync(path, "utf-8")));
const tokenizers = Object.fromEntries(Object.entries(TEMPLATES).map(([name, template]) => [name, tokenizerFor(json, template)]));
const found = cases.map(({ template: name, messages }) => {
  const template = TEMPLATES[name], tokenizer = tokenizers[name];
  try {
    const of = (mask, eos) => labelled(tokenizer, template, messages, mask, eos);
    const { ids, turns } = of("all");
    const labels = Object.keys(MASKS).flatMap((mask) => [[mask, of(mask, true).labels], [`${mask}, EOS masked`, of(mask, false).labels]]);
    return { ids, text: turns.map(({ opening, written }) => opening + written).join(""), labels: Object.fromEntries(labels) };
  } catch (error) {
    return { refused: error.message };
  }
});
console.log(JSON.stringify(found));
