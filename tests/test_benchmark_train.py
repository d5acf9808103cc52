"""benchmarks/train.py at tiny size, the command line included, and the sums of its profile."""

import io
import json
import types

import pytest
from rich.console import Console

from benchmarks import kernel_groups, train, train_cases
from sigma_jax.training.config import RunConfig


def test_the_tiny_benchmark_runs_from_end_to_end(tmp_path):
    out, file = io.StringIO(), tmp_path / 'rows.json'
    flags = ['--tiny', '--in-process', '--cases', 'lora', '--repeat', '1', '--out', str(file)]
    assert train.main(flags, Console(file=out, width=200)) == 0
    ceiling, step = json.loads(file.read_text())
    assert step['kind'] == 'lora' and step['per_s'] == pytest.approx(
        1e3 * step['batch'] / step['ms']
    )
    assert step['share'] == pytest.approx(step['flops_per_s'] / ceiling['flops_per_s'])
    assert step['first'] > 0 and step['calls'] == 1 and step['temp_gib'] > 0
    assert 'ours lora' in out.getvalue() and 'of ceiling' in out.getvalue()


def test_what_fails_is_a_row_and_the_status(tmp_path):
    out, file = io.StringIO(), tmp_path / 'rows.json'
    flags = [
        '--tiny',
        '--in-process',
        '--cases',
        'lora',
        '--remat',
        'no_such_policy',
        '--out',
        str(file),
    ]
    assert train.main(flags, Console(file=out, width=200)) == 1
    assert 'no_such_policy' in json.loads(file.read_text())[1]['error']
    assert 'failed' in out.getvalue()


def test_arithmetic_is_that_of_the_roofline():
    """An H100's 778 TFLOP/s give 86 LoRA samples a second (371 ms at B = 32), as the project's plan
    has it.
    """
    case = train_cases.Case('lora', 32)
    config = RunConfig.from_dict(train_cases.settings(case))
    flops = train_cases.model_flops(case, config.model.build(config.lora), config.sigma)
    assert flops / 778e12 == pytest.approx(0.371, rel=0.01)


def test_a_line_of_another_program_is_no_result():
    assert 'status 3' in train.last_line(['sh', '-c', 'echo lost >&2; exit 3'], {})['error']
    assert train.last_line(['sh', '-c', 'echo words; echo \'{"per_s": 1.5}\''], {}) == {
        'per_s': 1.5
    }


@pytest.mark.parametrize(
    'name, expected',
    [
        ('nvjet_tst_256x128_64x4_2x1_v_bz_coopA_NTN', 'matrix products'),
        ('gemm_fusion_dot_1234', 'matrix products'),
        ('sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64', 'matrix products'),
        (
            'cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x256',
            'attention forward',
        ),
        (
            'cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_27_64x64x256',
            'attention backward',
        ),
        ('input_reduce_fusion_7', 'reductions, norms'),
        ('loop_convert_fusion_3', 'element-wise'),
        ('wrapped_transpose', 'copies, transposes'),
        ('MemcpyD2D', 'copies, transposes'),
        ('loop_dynamic_update_slice_fusion', 'copies, transposes'),
    ],
)
def test_kernels_fall_into_their_groups(name, expected):
    assert kernel_groups.group(name) == expected


def test_a_profile_adds_up_to_the_step():
    """Two steps of 5 ms: a product of 2 ms, then, half over it on another stream, a copy of 2 ms; 2
    ms of nothing.
    """

    def event(name, start, duration):
        return types.SimpleNamespace(name=name, start_ns=start * 1e6, duration_ns=duration * 1e6)

    products = types.SimpleNamespace(
        name='Stream #1', events=[event('gemm', 5 * n, 2) for n in range(2)]
    )
    copies = types.SimpleNamespace(
        name='Stream #2', events=[event('MemcpyD2D', 5 * n + 1, 2) for n in range(2)]
    )
    names = types.SimpleNamespace(name='XLA Ops', events=[event('gemm', 0, 100)])
    planes = [
        types.SimpleNamespace(name='/host:CPU', lines=[]),
        types.SimpleNamespace(name='/device:GPU:0'),
    ]
    planes[1].lines = [products, names, copies]
    found = kernel_groups.summarise(
        kernel_groups.kernels_of(types.SimpleNamespace(planes=planes)), steps=2
    )
    assert found.groups == pytest.approx(
        {'matrix products': 2.0, 'copies, transposes': 2.0, 'idle': 1.0}
    )
    assert found.step_ms == pytest.approx(4.0) and found.kernels[0][1] == 1
    assert kernel_groups.summarise([], steps=2) is None
