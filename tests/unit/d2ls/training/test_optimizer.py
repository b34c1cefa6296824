import pytest
import torch

from d2ls.models import build_model
from d2ls.training.optimizer import backbone_depths, build_optimizer, parameter_groups
from d2ls.training.schedule import Schedule


@pytest.fixture(scope="module")
def network():
    return build_model(backbone="test_convnext", num_classes=4, stages=1, embed_dim=32, heads=2)


def test_every_parameter_is_in_one_group(network):
    groups = parameter_groups(network, 0.1, 0.8)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in network.parameters())


@pytest.mark.parametrize(
    "backbone", ["test_convnext", "test_resnet", "convnext_atto", "test_vit", "mvitv2_tiny"]
)
def test_rates_fall_towards_the_stem(backbone):
    with torch.device("meta"):
        network = build_model(backbone=backbone, num_classes=4, stages=0, embed_dim=32, heads=2)
    depths = backbone_depths(network)
    names = [name for name, _ in network.named_parameters() if name.startswith("backbone.trunk.")]
    assert set(depths) == set(names)
    assert depths[names[0]] == 0
    assert depths[names[-1]] == max(depths.values()) > 2
    scales = [group["lr_scale"] for group in parameter_groups(network, 0.5, 0.5)]
    assert scales[:2] == [1.0, 0.5]
    assert scales[-1] == pytest.approx(0.5 * 0.5 ** max(depths.values()))


def test_shallow_layers_move_less(network):
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = build_optimizer(network, lr=1e-3, weight_decay=0.0, layer_decay=0.5)
    Schedule(lr=1e-2, steps_per_epoch=1, total_steps=2, name="constant").apply(optimizer, 0)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    depths = backbone_depths(network)
    for name, parameter in network.named_parameters():
        scale = 0.5 ** (max(depths.values()) - depths[name]) if name in depths else 1.0
        assert (before[name] - parameter).mean().item() == pytest.approx(1e-2 * scale, rel=1e-3), name


def test_frozen_parameters_are_left_out():
    network = build_model(
        backbone="test_convnext", num_classes=4, stages=0, embed_dim=32, heads=2, freeze_backbone=True
    )
    assert len(parameter_groups(network, 0.1, 1.0)) == 1


def test_lookahead_is_that_of_the_published_recipes():
    """`catalyst.contrib.nn.Lookahead` with its defaults: at step 1, 6, 11, ... halfway from the slow weights."""
    ours, theirs = (torch.nn.Parameter(torch.linspace(1, 2, 3)) for _ in range(2))
    optimizer = build_optimizer(torch.nn.ParameterList([ours]), lr=0.1, lookahead=True)
    plain = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    slow = None
    for step in range(17):
        for parameter, each in ((ours, optimizer), (theirs, plain)):
            parameter.grad = torch.linspace(-1, 2, 3) * (step - 4)
            each.step()
        if step % 5 == 0:
            slow = theirs.detach().clone() if slow is None else (slow + theirs.detach()) / 2
            theirs.data.copy_(slow)
        torch.testing.assert_close(ours, theirs, msg=f"step {step + 1}")


def test_lookahead_takes_a_parameter_whose_first_gradient_comes_late():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(torch.nn.ParameterList([parameter]), lr=0.1, lookahead=True)
    for step in range(1, 12):
        parameter.grad = torch.ones(3) if step > 2 else None
        optimizer.step()
    assert (parameter < 1).all()


@pytest.mark.parametrize("bad", [1, 5, 6, 8, 11])
def test_a_step_that_is_not_made_leaves_no_trace(bad):
    """Neither weights and moments nor the counts of AdamW and Lookahead change."""
    runs = []
    for spoiled in (None, bad):
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = build_optimizer(torch.nn.ParameterList([parameter]), lr=0.1, lookahead=True)
        for step in range(1, 14):
            if step == spoiled:
                before = parameter.detach().clone()
                parameter.grad = torch.full((3,), torch.nan)
                optimizer.found_inf = torch.ones(())
                optimizer.step()
                optimizer.uncount_step()
                assert torch.equal(parameter, before)
            parameter.grad = torch.linspace(-1, 1, 3) * step
            optimizer.found_inf = torch.zeros(())
            optimizer.step()
        runs.append((parameter, *optimizer.state[parameter].values()))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
    assert len(runs[0]) == 5


def test_a_state_of_another_way_to_compute_is_taken_up():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(torch.nn.ParameterList([parameter]), lr=0.1)
    state = optimizer.state_dict()
    state["param_groups"][0]["fused"] = None
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["fused"], "else nothing would look at found_inf"
