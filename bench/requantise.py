"""Writes a model again with its matrices in one weight type, to compare weight types on the same model.

`python -m bench.requantise --type q4_0 --out FILE`: every matrix, whatever its type, is decoded and encoded again;
vectors (norms, biases) and metadata are copied. The second rounding adds its own error: good for measuring speed and
bits, not for judging answers. F16 of a 4-bit source loses next to nothing.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize, quantize

ROOT = Path(__file__).parent.parent
TYPES = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
}
_WRITTEN_BY_THE_WRITER = {"general.architecture", "general.file_type"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / ".butterfly/models/smollm2-135m.gguf")
    parser.add_argument("--type", choices=sorted(TYPES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    requantise(options.model, options.out, options.type)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.0f} MB")


def requantise(source: Path, out: Path, weight_type: str) -> None:
    """Write `source` (GGUF) to `out` with all matrices of type `weight_type`, a key of TYPES.

    Raises NotImplementedError if the source has a type that gguf cannot decode, ValueError if rows do not fill blocks.
    """
    quantization, file_type = TYPES[weight_type]
    reader = gguf.GGUFReader(source)
    partial = out.with_name(out.name + ".part")
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(partial, architecture, use_temp_file=True)
    _copy_fields(reader, writer)
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        if len(shape) == 1:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        writer.add_tensor(tensor.name, _encoded(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(out)


def _encoded(values: npt.NDArray[np.float32], to: gguf.GGMLQuantizationType) -> npt.NDArray[np.generic]:
    return values.astype(np.float16) if to is gguf.GGMLQuantizationType.F16 else quantize(values, to)


def _copy_fields(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _WRITTEN_BY_THE_WRITER:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)


if __name__ == "__main__":
    main()
