// Generates with the export in FOLDER/export, alone and in one batch, and compares with FOLDER/expected.json.
import { readFileSync } from "node:fs";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const folder = process.argv[2];
const expected = JSON.parse(readFileSync(`${folder}/expected.json`));
env.localModelPath = `${folder}/`;
env.allowRemoteModels = false;

const tokenizer = await AutoTokenizer.from_pretrained("export");
const model = await AutoModelForCausalLM.from_pretrained("export", { subfolder: "" });
const most = Math.max(...expected.tokens.map((row) => row.length));

async function generate(texts) {
  const inputs = tokenizer(texts, { padding: true });
  const made = await model.generate({
    ...inputs,
    max_new_tokens: most,
    do_sample: false,
    repetition_penalty: 1.0,
  });
  const longest = inputs.input_ids.dims[1];
  return made.tolist().map((row) => row.slice(longest).map(Number));
}

let wrong = 0;
let tokens = 0;
function compare(made, wanted) {
  wanted.forEach((token, place) => {
    tokens += 1;
    wrong += made[place] === token ? 0 : 1;
  });
}

expected.prompts.forEach((text, index) => {
  const ids = tokenizer(text).input_ids.tolist()[0].map(Number);
  wrong += JSON.stringify(ids) === JSON.stringify(expected.ids[index]) ? 0 : 1;
});
for (const [index, text] of expected.prompts.entries()) {
  compare((await generate([text]))[0], expected.tokens[index]);
}
(await generate(expected.prompts)).forEach((row, index) => compare(row, expected.tokens[index]));
if (expected.chat) {
  const chat = tokenizer.apply_chat_template([{ role: "user", content: "Hi" }], {
    tokenize: false,
    add_generation_prompt: true,
  });
  wrong += chat === expected.chat ? 0 : 1;
}
console.log(`${tokens - wrong} of ${tokens} tokens equal, alone and in one batch`);
process.exit(wrong ? 1 : 0);
