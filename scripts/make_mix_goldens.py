#!/usr/bin/env python3
"""Writes validation/testdata/mixes.txt: the dtypes that llama.cpp's quantiser chooses.

For each shape that `aios synth` knows, a file is made, and llama.cpp's quantiser is asked, in a
dry run, what it would turn each tensor into for each quant. Needs `pip install llama-cpp-python`
(0.3.36 was used) and room on disk for one model of 40 billion parameters in Q4_0 (24 GB).

    python3 scripts/make_mix_goldens.py AIOS SCRATCH_FOLDER > validation/testdata/mixes.txt
"""

import ctypes
import os
import re
import subprocess
import sys

import llama_cpp

QUANTS = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12,
    "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
}
TENSOR = re.compile(
    r"\] +(?P<name>\S+) +- \[ *\d+, +(?P<rows>\d+),[^]]*\], type = +(?P<old>\w+), "
    r"size =[^(\n]*(\((?P<new>\w+)\))?"
)


def shapes(aios):
    """The names of all shapes, as the program's refusal of an unknown one lists them."""
    refusal = subprocess.run([aios, "synth", "--shape", "?", "-"], capture_output=True, text=True)
    listed = re.search(r"possible values: ([^\]]*)\]", refusal.stderr.replace("\n", " "))
    return [name.strip() for name in listed.group(1).split(",")]


def dry_run(path, file_type):
    """The log of quantising the file at `path`."""
    lines = []

    @llama_cpp.llama_log_callback
    def log(_level, text, _data):
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.allow_requantize = True
    params.dry_run = True
    status = llama_cpp.llama_model_quantize(path.encode(), b"unused", ctypes.byref(params))
    if status != 0:
        raise SystemExit(f"{path}: the quantiser failed:\n{''.join(lines)}")
    return "".join(lines)


def mix(log):
    """Per role, in the order of their names, the dtypes of its tensors in runs."""
    roles = {}
    for match in TENSOR.finditer(log):
        if int(match["rows"]) > 1:
            layer, role = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*)", match["name"]).groups()
            layer = int(layer or 0)
            roles.setdefault(role, []).append((layer, (match["new"] or match["old"]).upper()))
    words = []
    for role, dtypes in sorted(roles.items()):
        runs = []
        for _, dtype in sorted(dtypes):
            if runs and runs[-1][0] == dtype:
                runs[-1][1] += 1
            else:
                runs.append([dtype, 1])
        words.append(f"{role}=" + ",".join(f"{dtype}x{count}" for dtype, count in runs))
    return " ".join(words)


def main():
    aios, scratch = sys.argv[1:]
    print("# What llama.cpp's quantiser makes of each matrix, layers in order (NxM: M of them");
    print("# in a row are N). Made by scripts/make_mix_goldens.py with llama-cpp-python "
          + llama_cpp.__version__ + ".")
    for shape in shapes(aios):
        path = os.path.join(scratch, "mix.gguf")
        subprocess.run([aios, "synth", "--shape", shape, "--quant", "Q4_0", "--force", path],
                       check=True, stdout=subprocess.DEVNULL)
        for quant, file_type in QUANTS.items():
            print(shape, quant, mix(dry_run(path, file_type)), flush=True)
        os.remove(path)


if __name__ == "__main__":
    main()
