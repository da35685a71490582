// node ruler_check.js CASES.json: each case's code, stored value and scale in each format, as JSON.
import { readFileSync } from "node:fs";
import { FORMATS } from "../../site/figures/ruler/formats.js";

const cases = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const found = cases.map((own) => Object.fromEntries(Object.entries(FORMATS).map(([name, { store }]) => {
  const { code, value, scale, marks } = store(own);
  return [name, { code, value, scale, marks }];
})));
console.log(JSON.stringify({ found, bits: Object.fromEntries(Object.entries(FORMATS).map(([name, { bits }]) => [name, bits])) }));
