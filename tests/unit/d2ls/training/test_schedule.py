import pytest
import torch

from d2ls.training.schedule import Schedule


def test_cosine_per_epoch_is_the_published_one():
    ours = Schedule(lr=1e-4, steps_per_epoch=3, total_steps=15, final_lr=1e-6, per="epoch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5, eta_min=1e-6)
    for epoch in range(5):
        for step in range(3):
            assert ours.at(3 * epoch + step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["cosine", "polynomial", "constant"])
def test_warm_up_rises_to_the_full_rate(name):
    schedule = Schedule(lr=0.5, steps_per_epoch=10, total_steps=20, name=name, warmup=0.25, final_lr=0.1)
    rates = [schedule.at(step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5] == pytest.approx(0.5)
    assert schedule.at(20) == pytest.approx(0.5 if name == "constant" else 0.1)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_groups_keep_their_share():
    groups = [{"params": [torch.zeros(1)], "lr_scale": 1.0}, {"params": [torch.zeros(1)], "lr_scale": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    rate = Schedule(lr=0.2, steps_per_epoch=1, total_steps=4).apply(optimizer, 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, rate / 10])
