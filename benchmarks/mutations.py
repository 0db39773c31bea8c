"""Mutants of files: bytes, JSON, lines, protobuf, folders and zip files, each from a seeded generator.

A mutant of an artifact gets new hashes and a new digest in most cases: otherwise the hash check would hide everything
behind it, and an attacker can compute hashes as well.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from qeil_compile.artifact.folder import manifest_digest

#: Bytes of a file that is not copied.
_BIG = 1 << 26
#: Numbers at which arithmetic and allocation go wrong.
NUMBERS = (0, -1, 1, 2, 3, 7, 63, 64, 65, 127, 255, 4096, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 40),
           (1 << 63) - 1,
           -(1 << 63), 1 << 64, 10**30, 0.5, -0.0, 1e-320, 1e308, -1e308)  # fmt: skip
#: Paths of which nothing may be read or written; {outside} is a folder beside the mutant.
PATHS = ("../../outside/written", "{outside}/written", "/proc/self/mem", "/dev/zero", "/etc/passwd", "..\\outside\\x",
         "C:\\x", "//x/y", "stages/../../outside/written", ".", "", "a" * 5000)  # fmt: skip
TEXTS = ("", "\0", "\ud7ff", "é" * 50, "%s%n", "{0.__class__}", "__import__('os').system('touch {outside}/written')",
         "\x1b]0;x\x07",
         "onnx", "fx", "float32", "int4", "opaque", "torch:cpu", "openvino:CPU", "onnxruntime:CPU", "openvino:NPU",
         "nan")  # fmt: skip


class Mutator:
    """Makes mutants; everything follows from the seed. `outside` is a folder that must stay as it is."""

    def __init__(self, seed: int, outside: str) -> None:
        self.rng = random.Random(seed)
        self.outside = outside

    # ---- bytes

    def data(self, raw: bytes, other: bytes = b"") -> bytes:
        """One to three changes of bytes; `other` is spliced in."""
        found = bytearray(raw)
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            self.rng.choice((self._flip, self._flip, self._number, self._cut, self._block, self._splice,
                             self._fill))(found, other)
        return bytes(found)

    def _at(self, found: bytearray) -> int:
        # Headers and ends decide more than the middle.
        spot = self.rng.random()
        size = len(found)
        return self.rng.randrange(min(size, 64)) if spot < 0.3 else size - 1 - self.rng.randrange(
            min(size, 64)) if spot > 0.8 else self.rng.randrange(size)  # fmt: skip

    def _flip(self, found: bytearray, other: bytes) -> None:
        for _ in range(self.rng.choice((1, 1, 2, 8))):
            if found:
                found[self._at(found)] ^= 1 << self.rng.randrange(8)

    def _number(self, found: bytearray, other: bytes) -> None:
        width = self.rng.choice((1, 2, 4, 8))
        if len(found) >= width:
            at = min(self._at(found), len(found) - width)
            value = self.rng.choice((0, 1, -1, 1 << (8 * width - 1), (1 << (8 * width - 1)) - 1,
                                     self.rng.getrandbits(8 * width)))
            found[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width,
                self.rng.choice(("little", "big")))

    def _cut(self, found: bytearray, other: bytes) -> None:
        if found:
            del found[self.rng.randrange(len(found)) :]

    def _block(self, found: bytearray, other: bytes) -> None:
        if found:
            a, size = self._at(found), self.rng.choice((1, 4, 16, 256, 4096))
            block = found[a : a + size]
            if self.rng.random() < 0.5:
                del found[a : a + size]
            else:
                found[a:a] = block * self.rng.choice((1, 1, 50))

    def _splice(self, found: bytearray, other: bytes) -> None:
        if found and other:
            a, b, size = self._at(found), self.rng.randrange(len(other)), self.rng.choice((4, 64, 1024))
            found[a : a + size] = other[b : b + size]

    def _fill(self, found: bytearray, other: bytes) -> None:
        a, size = (self._at(found) if found else 0), self.rng.choice((1, 8, 64))
        found[a : a + size] = bytes([self.rng.choice((0, 0xFF, 0x7F, 0x20))]) * size

    # ---- JSON

    def json(self, raw: bytes) -> bytes:
        """A change of the tree, or of the text where trees have no such form."""
        spot = self.rng.random()
        if spot < 0.1:
            return self.data(raw)
        if spot < 0.2:
            return self._json_text(raw)
        value = self.tree(json.loads(raw))
        return json.dumps(value).encode("utf-8", "surrogatepass")

    def tree(self, value: Any) -> Any:
        """One or two changes somewhere in a JSON value."""
        value = copy.deepcopy(value)
        for _ in range(self.rng.choice((1, 1, 2))):
            places = list(_places(value))
            if not places:
                return self.scalar()
            owner, key = self.rng.choice(places)
            self._edit(owner, key, places)
        return value

    def _edit(self, owner: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
        spot = self.rng.random()
        if spot < 0.45:
            owner[key] = self._near(owner[key]) if self.rng.random() < 0.5 else self.scalar()
        elif spot < 0.6:
            del owner[key]
        elif spot < 0.75:
            other, k = self.rng.choice(places)
            owner[key] = copy.deepcopy(other[k])
        elif spot < 0.85 and isinstance(owner, list):
            owner[key:key] = [owner[key]] * self.rng.choice((1, 2, 100))
        elif isinstance(owner, dict):
            owner[self.rng.choice((*TEXTS, "x"))] = owner.pop(key) if spot < 0.95 else self.scalar()
        else:
            self.rng.shuffle(owner)

    def _near(self, value: Any) -> Any:
        """Another value of the same type."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, *NUMBERS))
        if isinstance(value, float):
            return self.rng.choice((-value, value * 1e6, 0.0, 1e308))
        if isinstance(value, str):
            return self.rng.choice((value + "x", value[:-1], value.upper(), *TEXTS, *PATHS)).replace("{outside}",
                self.outside)
        return value * 2 if isinstance(value, list) else {}

    def scalar(self) -> Any:
        """Something that does not belong there."""
        found = self.rng.choice((*NUMBERS, *TEXTS, *PATHS, None, True, False, [], {}, [[[]]], {"a": {"b": 1}},
                                 [1, 2, 3]))
        return found.replace("{outside}", self.outside) if isinstance(found, str) else copy.deepcopy(found)

    def _json_text(self, raw: bytes) -> bytes:
        text = raw.decode("utf-8")
        numbers = list(re.finditer(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", text))
        form = self.rng.randrange(5)
        if form == 0 and numbers:
            m = self.rng.choice(numbers)
            word = self.rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, "1" + "0" * 25))
            return (text[: m.start()] + word + text[m.end() :]).encode()
        if form == 1:
            keys = list(re.finditer(r'"[^"]{1,40}"\s*:', text))
            if keys:
                m = self.rng.choice(keys)
                return (text[: m.start()] + m[0] + "0," + text[m.start() :]).encode()
        if form == 2:
            depth = self.rng.choice((50, 99, 101, 900, 5000, 100_000))
            return ("[" * depth + text + "]" * depth).encode()
        if form == 3 and numbers:
            m = self.rng.choice(numbers)
            depth = self.rng.choice((20, 500, 3000))
            return (text[: m.start()] + "[" * depth + "]" * depth + text[m.end() :]).encode()
        return (text + self.rng.choice(("\0", "{}", " " * 10000, "\\ud800"))).encode()

    # ---- lines (TOML, JSON lines, templates)

    def lines(self, raw: bytes) -> bytes:
        """A line removed, repeated, or with another number or text in it; sometimes bytes."""
        rows = raw.decode("utf-8").split("\n")
        at = self.rng.randrange(len(rows))
        spot = self.rng.random()
        if spot < 0.15:
            return self.data(raw)
        if spot < 0.3:
            del rows[at]
        elif spot < 0.4:
            rows[at:at] = [rows[at]] * self.rng.choice((1, 300))
        elif spot < 0.8:
            words = list(re.finditer(r"-?\d+(\.\d+)?(e[-+]?\d+)?|\"[^\"]*\"|true|false", rows[at]))
            if words:
                m = self.rng.choice(words)
                new = self.rng.choice(("nan", "inf", "-1", "0", "1e400", "1e308", "9" * 300, '"x"', "[]", "{}",
                                       "true", "-0.0", '""',
                                       "1e-320", "[[[[1]]]]", '"\\u0000"',
                                       json.dumps(self.scalar(), default=str)))  # fmt: skip
                rows[at] = rows[at][: m.start()] + new + rows[at][m.end() :]
        elif spot < 0.9:
            rows[at] = self.rng.choice(("[" * 3000, "]", "a" * 100_000, "[[device]]", "x = " + "[" * 800 + "]" * 800,
                                        "=", "\t"))
        else:
            self.rng.shuffle(rows)
        return "\n".join(rows).encode("utf-8", "surrogatepass")

    # ---- protobuf

    def onnx(self, raw: bytes) -> bytes:
        """Bytes, or a change of the message that the parser will accept."""
        if self.rng.random() < 0.25:
            return self.data(raw)
        try:
            model = onnx.ModelProto.FromString(raw)
        except Exception:  # a stage that is no model
            return self.data(raw)
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            self.rng.choice((self._node, self._node, self._attribute, self._attribute, self._tensor, self._tensor,
                             self._tensor,
                             self._value, self._value, self._graph))(model)  # fmt: skip
        return model.SerializeToString()

    def _node(self, model: Any) -> None:
        nodes = [n for g in _graphs(model) for n in g.node]
        if not nodes:
            return
        node, other = self.rng.choice(nodes), self.rng.choice(nodes)
        form = self.rng.randrange(9)
        if form == 0:
            node.op_type = self.rng.choice((*_OPERATORS, other.op_type, "", "Nothing"))
        elif form == 1:
            node.domain = self.rng.choice(("com.microsoft", "ai.onnx.ml", "evil", "qeil", "org.openvinotoolkit",
                                           "ai.onnx"))
        elif form == 2 and node.input and other.output:
            node.input[self.rng.randrange(len(node.input))] = self.rng.choice((*other.output, *other.input,
                "nowhere", ""))
        elif form == 3 and node.output:
            node.output[self.rng.randrange(len(node.output))] = self.rng.choice((*other.output, *other.input,
                "elsewhere", ""))
        elif form == 4:
            model.graph.node.insert(self.rng.randrange(len(model.graph.node) + 1), other)
        elif form == 5 and model.graph.node:
            del model.graph.node[self.rng.randrange(len(model.graph.node))]
        elif form == 6 and node.input:
            node.input.extend(list(node.input) * self.rng.choice((1, 3)))
        elif form == 7:
            del node.attribute[:]
        else:
            first = list(node.input)
            self.rng.shuffle(first)
            del node.input[:]
            node.input.extend(first)

    def _attribute(self, model: Any) -> None:
        nodes = [n for g in _graphs(model) for n in g.node]
        found = [a for n in nodes for a in n.attribute]
        if not found or self.rng.random() < 0.2:
            if nodes:
                name = self.rng.choice(("axis", "group", "pads", "kernel_shape", "to", "perm", "num_heads", "bits",
                                        "block_size", "K"))
                self.rng.choice(nodes).attribute.append(helper.make_attribute(name, self._int()))
            return
        a = self.rng.choice(found)
        if a.ints:
            spot = self.rng.randrange(4)
            if spot == 0:
                a.ints.append(self._int())
            elif spot == 1:
                del a.ints[self.rng.randrange(len(a.ints))]
            else:
                a.ints[self.rng.randrange(len(a.ints))] = self._int()
        elif a.type == onnx.AttributeProto.INT:
            a.i = self._int()
        elif a.type == onnx.AttributeProto.FLOAT:
            a.f = self.rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-40))
        elif a.type == onnx.AttributeProto.STRING:
            a.s = self.rng.choice((b"", b"NOTSET", b"SAME_UPPER", b"VALID", b"x" * 1000, b"\xff"))
        elif a.HasField("t"):
            self._change_tensor(a.t)
        else:
            a.type = self.rng.randrange(15)

    def _int(self) -> int:
        return int(self.rng.choice([n for n in NUMBERS if isinstance(n, int) and -(1 << 63) <= n < 1 << 63]))

    def _tensor(self, model: Any) -> None:
        found = [t for g in _graphs(model) for t in g.initializer]
        if found:
            self._change_tensor(self.rng.choice(found))

    def _change_tensor(self, t: Any) -> None:
        form = self.rng.randrange(8)
        if form == 0 and t.dims:
            t.dims[self.rng.randrange(len(t.dims))] = self._int()
        elif form == 1:
            t.dims.append(self._int())
        elif form == 2:
            t.data_type = self.rng.choice((0, 1, 7, 8, 9, 10, 11, 16, 17, 21, 22, 25, 99, 6))
        elif form == 3:
            t.name = self.rng.choice(("", "elsewhere", "x" * 2000))
        elif form == 4:
            t.raw_data = self.data(t.raw_data or b"12345678")
        elif form == 5 or t.data_location == TensorProto.EXTERNAL:
            t.data_location = TensorProto.EXTERNAL
            del t.external_data[:]
            given = {"location": self.rng.choice((*PATHS, "model.data", "weights.bin")).replace("{outside}",
                self.outside)}
            given |= self.rng.choice(({}, {"offset": str(self._int())}, {"length": str(self._int())}, {"offset": "x"}))
            for key, value in given.items():
                t.external_data.add(key=key, value=value)
        elif form == 6:
            t.ClearField("raw_data")
        else:
            t.float_data.append(1.0)

    def _value(self, model: Any) -> None:
        infos = [i for g in _graphs(model) for i in (*g.input, *g.output, *g.value_info)]
        if not infos:
            return
        info = self.rng.choice(infos)
        kind = info.type.tensor_type
        form = self.rng.randrange(5)
        if form == 0:
            kind.elem_type = self.rng.choice((0, 1, 7, 8, 9, 10, 11, 16, 17, 99))
        elif form == 1 and kind.shape.dim:
            kind.shape.dim[self.rng.randrange(len(kind.shape.dim))].dim_value = self._int()
        elif form == 2:
            kind.shape.dim.add(dim_value=self._int())
        elif form == 3:
            info.name = self.rng.choice(("", "nowhere", self.rng.choice(infos).name))
        else:
            info.type.Clear()

    def _graph(self, model: Any) -> None:
        form = self.rng.randrange(6)
        if form == 0 and model.opset_import:
            model.opset_import[0].version = self.rng.choice((0, 1, 7, 13, 99, 1 << 40))
        elif form == 1:
            del model.opset_import[:]
        elif form == 2:
            model.ir_version = self.rng.choice((0, 1, 3, 11, 99))
        elif form == 3:
            body = helper.make_node("F", ["a"], ["b"], domain="own")
            model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [body], list(model.opset_import)))
            model.opset_import.append(helper.make_opsetid("own", 1))
        elif form == 4 and model.graph.input:
            inner = onnx.GraphProto(name="inner")
            for _ in range(self.rng.choice((2, 20, 30))):
                outer = onnx.GraphProto(name="outer")
                node = helper.make_node("If", [model.graph.input[0].name], ["o"])
                node.attribute.append(helper.make_attribute("then_branch", inner))
                outer.node.append(node)
                inner = outer
            model.graph.node.extend(inner.node)
        else:
            shape = helper.make_tensor("huge", TensorProto.INT64, [2], [1 << 40, self._int()])
            model.graph.initializer.append(shape)
            model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["hole"]))

    # ---- folders and zip files

    def artifact(self, folder: Path) -> str:
        """Change an artifact in its folder; returns what was done."""
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        spot = self.rng.random()
        if spot < 0.06:
            return self._special(folder, self.rng.choice(files))
        # Programs and descriptions are small beside weights, and decide more.
        small = [f for f in files if not f.endswith(".bin")]
        name = self.rng.choice(("manifest.json", self.rng.choice(small), self.rng.choice(small),
                                self.rng.choice(files)))
        raw = (folder / name).read_bytes()
        changed = self.file(name, raw, (folder / self.rng.choice(files)).read_bytes())
        rehash = self.rng.random() < 0.85
        (folder / name).write_bytes(changed)
        if rehash:
            rehashed(folder, name)
        return f"{name}{', new hashes' if rehash else ''}"

    def file(self, name: str, raw: bytes, other: bytes = b"") -> bytes:
        """A mutant of a file by what its name says it is."""
        if name.endswith((".json", ".index")):
            return self.json(raw)
        if name.endswith(".onnx"):
            return self.onnx(raw)
        if name.endswith((".toml", ".jsonl", ".jinja", ".txt")):
            return self.lines(raw)
        return self.data(raw, other)

    def folder(self, folder: Path) -> str:
        """Change one file of a folder of anything."""
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        name = self.rng.choice(files)
        if self.rng.random() < 0.06:
            return self._special(folder, name)
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(self.file(name, raw, (folder / self.rng.choice(files)).read_bytes()))
        return name

    def _special(self, folder: Path, name: str) -> str:
        """No file, a link, a pipe, a folder, a sparse giant in place of a file."""
        path = folder / name
        size = path.stat().st_size
        path.unlink()
        form = self.rng.randrange(6)
        if form == 0:
            path.symlink_to(self.rng.choice(("/dev/zero", "/etc/passwd", str(path), self.outside)))
        elif form == 1:
            os.mkfifo(path)
        elif form == 2:
            path.mkdir()
        elif form == 3:
            with path.open("wb") as file:
                file.truncate(self.rng.choice((1 << 33, 1 << 42, size)))
        elif form == 4:
            path.symlink_to(f"{self.outside}/secret")
        return f"{name}: {('link', 'pipe', 'folder', 'sparse', 'link out', 'missing')[form]}"

    def zip(self, folder: Path, path: Path) -> str:
        """A zip file of a folder with a change of the container or of what is in it."""
        spot = self.rng.random()
        what = self.artifact(folder) if spot < 0.5 else "container"
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink() and p.stat().st_size < _BIG]
        evil = self.rng.randrange(7) if spot >= 0.75 else -1
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if evil == 0 else zipfile.ZIP_STORED) as archive:
            for file in files:
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
                entry.compress_type = archive.compression
                if evil == 1 and self.rng.random() < 0.3:
                    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(entry, file.read_bytes())
            if evil == 2:
                archive.writestr(self.rng.choice(("../outside/written", "/x", "a\\b", "C:x", "manifest.json/x")), b"x")
            elif evil == 3:
                archive.writestr("weights/bomb.bin", b"\0" * (1 << 22), zipfile.ZIP_DEFLATED)
        raw = bytearray(path.read_bytes())
        if evil == 4:
            # Every member begins where the first does.
            for at in (m.start() for m in re.finditer(b"PK\x01\x02", raw)):
                raw[at + 42 : at + 46] = bytes(4)
        if 0.5 <= spot < 0.75 or evil == 5:
            tail = raw.find(b"PK\x01\x02")
            part = raw[tail:] if self.rng.random() < 0.7 and tail > 0 else raw
            mutant = self.data(bytes(part))
            raw = raw[:tail] + mutant if part is not raw else bytearray(mutant)
        path.write_bytes(raw)
        return f"{what}{f', container {evil}' if evil >= 0 else ''}"


_OPERATORS = ("Add", "MatMul", "Gemm", "Conv", "Reshape", "Transpose", "Gather", "GatherND", "ScatterND", "Slice",
              "Concat", "Split",
              "Expand", "Tile", "Pad", "Resize", "TopK", "OneHot", "Range", "ConstantOfShape", "NonZero", "If",
              "Loop", "Scan", "LSTM",
              "Softmax", "LayerNormalization", "MaxPool", "Cast", "Identity", "Constant", "Einsum", "QuantizeLinear",
              "SequenceEmpty",
              "NonMaxSuppression", "RoiAlign", "Unique", "StringNormalizer", "Attention", "CumSum")  # fmt: skip


def rehashed(folder: Path, name: str) -> None:
    """Enter a changed file's hash and size, and the manifest's digest, as an attacker would."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if name != "manifest.json":
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        manifest["digest"] = manifest_digest(manifest)
        path.write_text(json.dumps(manifest), encoding="utf-8")
    except Exception:  # too damaged to have a digest
        return


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value, as its owner and key."""
    todo = [value]
    while todo:
        owner = todo.pop()
        for key in owner if isinstance(owner, dict) else range(len(owner)) if isinstance(owner, list) else ():
            yield owner, key
            todo.append(owner[key])


def _graphs(model: Any) -> Iterator[Any]:
    todo = [model.graph]
    while todo:
        graph = todo.pop()
        yield graph
        todo += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]


def fresh_copy(source: Path, target: Path) -> Path:
    """A copy of a file or folder."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


