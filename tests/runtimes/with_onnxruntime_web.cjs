// Run MODEL.onnx in onnxruntime-web on the images in the file `image`, and write the files `label` and `probabilities`.

const { readFileSync, writeFileSync } = require("node:fs");
const ort = require("onnxruntime-web");

async function main() {
  const session = await ort.InferenceSession.create(readFileSync(process.argv[2]));
  const pixels = readFileSync("image");
  const image = new ort.Tensor("uint8", pixels, [pixels.length / (28 * 28), 1, 28, 28]);
  const outputs = await session.run({ image });
  for (const name of ["label", "probabilities"]) writeFileSync(name, outputs[name].data);
  console.log(ort.env.versions.web);
}

main();
