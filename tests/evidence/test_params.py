"""The command counts as the product's own test does, and compares with Zhyper."""

import params


def test_t2l_of_rank_8_has_thirteen_times_the_parameters_of_zhyper_at_the_size_of_mistral(run_main):
    _, t2l, zhyper, _ = run_main(params.main, "--backbone", "mistral-7b", "--rank", 8).splitlines()
    assert t2l.split() == ["t2l", "55,424,000", "13.17", "×", "zhyper-diag"]
    assert zhyper.split() == ["zhyper-diag", "4,207,632", "1.00", "×", "zhyper-diag"]
