"""Readers, and some writers, of weight files; none of them imports, looks up or calls what a file names.

Every reader is `read(data, name)`: the bytes of a whole file, and what error messages call it; it returns plain
values and numpy arrays, or raises `CheckpointError`.

| module           | file                                   | what the file may name                     |
|------------------|----------------------------------------|--------------------------------------------|
| paddle_pickle    | .pdparams .pdopt .pdstates .pd         | the rows "arrays" and "Paddle"             |
| torch_zip        | .pth .pt .bin since torch 1.6          | the rows "arrays", "tensors" and "inert"   |
| torch_legacy     | .pth .pt .bin before torch 1.6         | the same                                   |
| safetensors_file | .safetensors                           | nothing                                    |
| mindspore_file   | .ckpt                                  | nothing                                    |

| row     | names                                                                                                    |
|---------|----------------------------------------------------------------------------------------------------------|
| arrays  | numpy.ndarray, numpy.dtype, numpy.{core,_core}.multiarray.{_reconstruct,scalar}, builtins.bytes,         |
|         | numpy.{core,_core}.numeric._frombuffer, _codecs.encode (latin1 only), collections.OrderedDict            |
| Paddle  | builtins.tuple                                                                                           |
| tensors | torch._utils.{_rebuild_tensor_v2,_rebuild_parameter,_rebuild_parameter_with_state}, torch.Size,          |
|         | torch.{Float,Double,Half,BFloat16,Long,Int,Short,Char,Byte,Bool}Storage                                  |
| inert   | torch.device and torch's dtypes become text; collections.Counter, argparse.Namespace and mmengine's      |
|         | HistoryBuffer become dicts of what they hold; getattr(HistoryBuffer, "...") becomes text                 |

The machine that the pickle readers share, and the row "arrays", are on floor 0 (`utils/pickle_machine.py`,
`utils/numpy_pickle.py`), since data sets may be pickles too.

Everything else is refused. An array, text or a dict of plain values is the most that a file can make of a name.
"""
