"""A writer that says before each operation what it begins, and after it what is done."""

from __future__ import annotations

import json
import random
import sys

from kvstate.store import open_store

TIERS = ("hot", "warm", "cold")


def _say(**line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _content(rng):
    return rng.randbytes(rng.choice([0, 10, 1000, 70_000, 200_000]))


def _shown(tier, content):
    return f"{tier} {len(content)} {content[:20].hex()}"


def main(path, seed):
    """Work until somebody kills this process."""
    rng = random.Random(seed)
    store = open_store(path)
    keys, contents = {}, {}
    ns, artifacts = store.namespace("ns"), store.artifacts
    while True:
        name = f"t/w/{rng.choice('abc')}/{rng.randrange(8)}"
        key = str(rng.randrange(20))
        what = rng.choice(["set", "set", "delkey", "batch", "put", "put", "move", "rm", "mv"])
        if what == "set":
            value = rng.randrange(10**9) if rng.random() < 0.9 else "x" * 100_000
            _say(begin=[f"key:{key}"])
            ns[key] = value
            _say(done={f"key:{key}": value})
        elif what == "delkey":
            _say(begin=[f"key:{key}"])
            ns.delete(key)
            _say(done={f"key:{key}": None})
        elif what == "batch":
            batch = {str(number): rng.random() for number in rng.sample(range(20), 5)}
            _say(begin=[f"key:{k}" for k in batch])
            ns.set_many(batch)
            _say(done={f"key:{k}": v for k, v in batch.items()})
        elif what == "put":
            content, tier = _content(rng), rng.choice(TIERS)
            _say(begin=[name])
            artifacts.put(name, content, tier=tier)
            contents[name] = content
            keys[name] = tier
            _say(done={name: _shown(tier, content)})
        elif what == "rm":
            _say(begin=[name])
            artifacts.delete(name)
            contents.pop(name, None)
            _say(done={name: None})
        elif name in contents and what == "move":
            tier = rng.choice(TIERS)
            _say(begin=[name])
            artifacts.move(name, tier)
            keys[name] = tier
            _say(done={name: _shown(tier, contents[name])})
        elif name in contents:
            new = f"t/w2/{rng.randrange(8)}"
            _say(begin=[name, new])
            artifacts.rename(name, new, replace=True)
            contents[new], keys[new] = contents.pop(name), keys.pop(name)
            _say(done={name: None, new: _shown(keys[new], contents[new])})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
