"""JavaScript without any package asks every RPC by its name, with `fetch` of Node as browsers have it."""

import base64
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

PROGRAM = """
const [server, token, data] = process.argv.slice(1);

class KeylockError extends Error {
  constructor(problem) { super(problem.detail); this.problem = problem; }
}

async function call(rpc, request, license) {
  const headers = { "Content-Type": "application/json" };
  if (license) headers.Authorization = `Bearer ${license}`;
  const reply = await fetch(`${server}/${rpc}`, { method: "POST", headers, body: JSON.stringify(request) });
  const answer = await reply.json();
  if (!reply.ok) throw new KeylockError(answer);
  return answer;
}

const service = "keylock.v1.ExplanationService";
const image = { tensor: { dtype: "DATA_TYPE_FLOAT32", shape: [3, 8, 8], data } };
const model = await call(`${service}/GetModel`, {});
const { units } = await call(`${service}/EstimateExplain`, { images: 2, modelName: model.model.name }, token);
const decoy = await call(`${service}/Explain`, { images: [image] });
const keyed = await call(`${service}/Explain`, { images: [image], explainer: "brightness" }, token);
const map = Buffer.from(keyed.results[0].map.data, "base64");
const values = [...new Float32Array(map.buffer.slice(map.byteOffset, map.byteOffset + map.length))];
let refused;
try {
  await call(`${service}/Explain`, { images: [image], explainer: "none" });
} catch (error) { refused = error.problem; }
console.log(JSON.stringify({
  classes: model.classes, units, values, refused,
  keyed: [decoy.results[0].keyed, keyed.results[0].keyed], shape: keyed.results[0].map.shape,
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_fetch_asks_every_rpc_by_its_name(web, vendor, tiny):
    image, token = tiny.images(1)[0], vendor.grant().token
    command = ["node", "--input-type=module", "-e", PROGRAM, f"http://127.0.0.1:{web.port}", token]
    done = subprocess.run(
        [*command, base64.b64encode(image.tobytes()).decode()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"NO_PROXY": "*"},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["classes"] == list(tiny.classes)
    assert answer["units"] == 2
    assert answer["keyed"] == [False, True]
    known = web.calls.explain(tiny.tensor_image(image), token=token).results[0]
    np.testing.assert_array_equal(np.float32(answer["values"]).reshape(answer["shape"]), tiny.to_array(known.map))
    assert (answer["refused"]["reason"], answer["refused"]["field"]) == ("UNKNOWN_NAME", "explainer")
