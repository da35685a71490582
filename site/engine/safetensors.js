/**
 * Reads a safetensors file: 8 bytes with the header's length, the header as JSON, then the numbers of all tensors.
 *
 * @typedef {{shape: number[], data: Float32Array}} Tensor
 */

/** What is read, as float32. bfloat16 is the upper half of a float32, so that reading it is a shift. */
const READ = {
  F32: (bytes) => new Float32Array(bytes),
  BF16: (bytes) => new Float32Array(Uint32Array.from(new Uint16Array(bytes), (half) => half << 16).buffer),
};

/**
 * @param {ArrayBuffer} buffer the whole file
 * @param {string} name the file's name, for what is said when it can't be read
 * @returns {Record<string, Tensor>} the tensors by name; a matrix lies row by row
 */
export function readSafetensors(buffer, name = "the file") {
  const damaged = (what) => new Error(`${name} is no whole safetensors file: ${what}`);
  if (buffer.byteLength < 8) throw damaged(`it has ${buffer.byteLength} bytes`);
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > buffer.byteLength - 8) throw damaged(`its header should have ${length} bytes, and fewer follow`);
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  } catch {
    throw damaged("its header is no JSON");
  }
  const tensors = {};
  for (const [key, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (key === "__metadata__") continue;
    if (!(dtype in READ)) throw new Error(`${key} in ${name} is stored as ${dtype}; F32 and BF16 are read`);
    const [begin, end] = offsets.map((offset) => 8 + length + offset);
    if (end > buffer.byteLength) throw damaged(`${key} ends behind the file's end`);
    const data = READ[dtype](buffer.slice(begin, end));
    if (data.length !== shape.reduce((a, b) => a * b, 1)) throw damaged(`${key} isn't of shape ${shape.join(" x ")}`);
    tensors[key] = { shape, data };
  }
  return tensors;
}
