// node layer_check.js CASES.json: what each layer holds and computes, and the shapes of the real models' layers, as JSON.
import { readFileSync } from "node:fs";
import { counted, LAYERS } from "../../site/figures/layer/count.js";

const cases = JSON.parse(readFileSync(process.argv[2], "utf-8"));
console.log(JSON.stringify({ found: cases.map(counted), layers: LAYERS }));
