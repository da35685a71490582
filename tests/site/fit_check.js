// node fit_check.js CASES.json: what the figure's estimator says of each {config, setup}, as one JSON line.
import { readFileSync } from "node:fs";
import { counts, firstThatFits, needed, predict } from "../../site/figures/fit/estimate.js";

const found = JSON.parse(readFileSync(process.argv[2])).map(({ config, setup, room }) => {
  try {
    if (room) return firstThatFits(config, setup, room);
    const { peak, phase, parts, phases, resident } = predict(config, setup);
    return { peak, phase, parts, phases, resident, needed: needed(peak), counts: counts(config, setup) };
  } catch (error) {
    return { refused: error.message };
  }
});
console.log(JSON.stringify(found));
