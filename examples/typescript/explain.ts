// Asks a keylock server why: prints what it sees in a picture, and writes the saliency map as a picture.
//
//     node dist/explain.js cat.png why.png [--server localhost:8470] [--license-file acme.license] [--ca ca.pem]
//
// The types under `generated/` come from the protos of the server; `npm run build` makes them.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { deflateSync } from "node:zlib";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./generated/explanation.js";
import type { ExplainRequest } from "./generated/keylock/v1/ExplainRequest.js";
import type { ExplainResponse__Output } from "./generated/keylock/v1/ExplainResponse.js";
import type { ExplanationServiceClient } from "./generated/keylock/v1/ExplanationService.js";

const usage = "node dist/explain.js PICTURE MAP.png [--server HOST:PORT] [--license-file FILE] [--ca FILE]";

/** The token in a license file: what stands between its first and its last line, without line breaks. */
function readLicense(file: string): string {
  const text = readFileSync(file, "utf8");
  const token = text.replace(/-----(?:BEGIN|END) KEYLOCK LICENSE-----/g, "").replace(/\s/g, "");
  if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) throw new Error(`${file} holds no license: ask the vendor for the file`);
  return token;
}

/** Connects; `ca` names a file with the certificates to trust, without it nothing is encrypted. */
function connect(server: string, ca?: string): ExplanationServiceClient {
  // The protos are read again here, for what the types say nothing about: the numbers of fields.
  const folders = ["../../../proto", "../protos"].map((path) => fileURLToPath(new URL(path, import.meta.url)));
  const definition = loadSync("keylock/v1/explanation.proto", {
    includeDirs: folders,
    keepCase: true,
    longs: Number,
    enums: String,
    defaults: true,
    oneofs: true,
  });
  const { keylock } = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
  const credentials = ca === undefined ? grpc.credentials.createInsecure() : grpc.credentials.createSsl(readFileSync(ca));
  return new keylock.v1.ExplanationService(server, credentials);
}

/** Asks, and gives up after half a minute. A license that is sent and not good is an error, never a decoy. */
function explain(
  client: ExplanationServiceClient,
  request: ExplainRequest,
  token?: string,
): Promise<ExplainResponse__Output> {
  const metadata = new grpc.Metadata();
  if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + 30_000 };
    client.Explain(request, metadata, options, (error, answer) => {
      if (error !== null || answer === undefined) reject(error ?? new Error("the server sent no answer"));
      else resolve(answer);
    });
  });
}

/** Writes grey pixels as a PNG file. */
function png(width: number, height: number, pixels: Uint8Array): Buffer {
  const chunk = (kind: string, content: Uint8Array): Buffer => {
    const named = Buffer.concat([Buffer.from(kind, "latin1"), content]);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(content.length);
    const sum = Buffer.alloc(4);
    sum.writeUInt32BE(crc32(named));
    return Buffer.concat([length, named, sum]);
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head[8] = 8; // Eight bits of grey, and no other choice.
  const rows = Buffer.alloc(height * (width + 1));
  for (let row = 0; row < height; row += 1) {
    rows.set(pixels.subarray(row * width, (row + 1) * width), row * (width + 1) + 1);
  }
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([signature, chunk("IHDR", head), chunk("IDAT", deflateSync(rows)), chunk("IEND", new Uint8Array())]);
}

function crc32(bytes: Uint8Array): number {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return (sum ^ 0xffffffff) >>> 0;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      server: { type: "string", default: "localhost:8470" },
      "license-file": { type: "string" },
      ca: { type: "string" },
    },
  });
  const [picture, out] = positionals;
  if (picture === undefined || out === undefined || positionals.length > 2) throw new Error(`usage: ${usage}`);
  const file = values["license-file"];
  const token = file === undefined ? undefined : readLicense(file);
  const client = connect(values.server, values.ca);
  const request = { images: [{ encoded: readFileSync(picture) }], answer: { map_dtype: "DATA_TYPE_UINT8" as const } };
  try {
    const answer = await explain(client, request, token);
    const result = answer.results[0];
    if (!result?.map || !result.prediction) throw new Error("the answer has no result");
    const [height, width] = result.map.shape;
    if (height === undefined || width === undefined) throw new Error("the map has no shape");
    // One value of a map is `offset + scale * element`; as a picture the elements are enough.
    writeFileSync(out, png(width, height, result.map.data));
    const { label, probability } = result.prediction;
    console.log(`${label} (${(100 * probability).toFixed(1)} %)`);
    console.log(result.keyed ? `the true map is in ${out}` : `a decoy is in ${out}: the true map needs a license`);
    if (answer.usage?.units) console.log(`${answer.usage.units} charged to ${answer.usage.license_id}`);
  } finally {
    client.close();
  }
}

main().catch((error: Error & Partial<grpc.ServiceError>) => {
  // Of an error of the call, `details` is the sentence that the server wrote.
  const code = typeof error.code === "number" ? ` (${grpc.status[error.code]})` : "";
  console.error(`error: ${error.details ?? error.message}${code}`);
  process.exitCode = 1;
});
