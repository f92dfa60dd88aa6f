import math

import pytest

from shared.domain.errors import InvalidInput
from shared.domain.sampler import check_sampler
from shared.domain.task import SamplerParams

N_VOCAB = 50


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplerParams(temperature=math.nan), "temperature"),
        (SamplerParams(temperature=-0.1), "temperature"),
        (SamplerParams(top_k=-1), "top_k"),
        (SamplerParams(top_p=0.0), "top_p"),
        (SamplerParams(min_p=1.1), "min_p"),
        (SamplerParams(presence_penalty=math.inf), "presence_penalty"),
        (SamplerParams(frequency_penalty=-3.0), "frequency_penalty"),
        (SamplerParams(repetition_penalty=0.0), "repetition_penalty"),
        (SamplerParams(seed=2**64), "seed"),
        (SamplerParams(logprobs=-1), "logprobs"),
        (SamplerParams(logprobs=21), "top_logprobs"),
        (SamplerParams(logit_bias=((N_VOCAB, 1.0),)), "logit_bias"),
        (SamplerParams(logit_bias=((0, math.nan),)), "logit_bias"),
    ],
)
def test_parameters_the_rule_cannot_follow_are_refused_by_name(params: SamplerParams, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_sampler(params, N_VOCAB)

    assert refused.value.param == field
