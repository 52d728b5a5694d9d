"""Rules between settings: combinations that a recipe can't have.

Each rule yields what doesn't fit, and what would. The first misfit is the recipe's error.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import RunSettings

Misfit = Iterator[str]


def bfloat16_needs_float32_gradients(run: "RunSettings") -> Misfit:
    """In bfloat16, gradients are added up in float32, which ZeRO does from stage 1 on."""
    if run.policy.precision == "bfloat16" and run.learner.zero_stage == 0:
        yield (
            "learner.zero_stage is 0 with policy.precision 'bfloat16'; use stage 1, 2 or 3 "
            "(stage 0 would add up gradients in bfloat16 and lose most of them)"
        )


def compiling_needs_whole_layers(run: "RunSettings") -> Misfit:
    """A network whose ranks gather it layer by layer (ZeRO 3) can't be compiled."""
    if run.policy.compile and run.learner.zero_stage == 3:
        yield (
            "policy.compile is true with learner.zero_stage 3, whose hooks on every layer can't be compiled, and a "
            "learner that rounds otherwise than the rollouts would be off; use stage 0, 1 or 2, or compile false"
        )


def offloading_needs_partitions(run: "RunSettings") -> Misfit:
    """Only what ZeRO divides among the ranks can be offloaded."""
    for part, stage in {"optimizer": 1, "parameters": 3}.items():
        if getattr(run.learner.offload, part) and run.learner.zero_stage < stage:
            yield (
                f"learner.offload.{part} is on with learner.zero_stage {run.learner.zero_stage}; it needs stage "
                f"{stage}" + (" or more" if stage < 3 else "")
            )


def single_files_say_what_they_are(run: "RunSettings") -> Misfit:
    """A single file needs a folder that describes its parts, and only a single file does."""
    policy = run.policy
    if policy.pretrained.endswith(".safetensors") != (policy.config is not None):
        yield (
            f"policy.pretrained is '{policy.pretrained}' and policy.config {policy.config or 'null'}; a .safetensors "
            "file, and only one, needs the folder of a pipeline like it as policy.config"
        )


def steps_are_as_many_as_their_levels(run: "RunSettings") -> Misfit:
    """A model that was distilled to some noise levels takes so many steps."""
    levels = run.policy.sigmas
    if levels is None:
        return
    if run.policy.shift is not None:
        yield f"policy.shift is {run.policy.shift} with policy.sigmas, which are taken as they are; give one of them"
    grid = run.schedule.build().grid_steps
    for name, steps in {"schedule.steps": grid, "evaluation.steps": run.evaluation.steps or grid}.items():
        if steps != len(levels):
            yield f"{name} is {steps}; policy.sigmas has {len(levels)} noise levels: it must be {len(levels)}"


def updates_divide_an_iteration(run: "RunSettings") -> Misfit:
    """Every update of an iteration has as many trees as the others."""
    if run.prompts.per_iteration % run.learner.updates_per_iteration:
        yield (
            f"learner.updates_per_iteration is {run.learner.updates_per_iteration}; it must divide "
            f"prompts.per_iteration, which is {run.prompts.per_iteration}"
        )


def judges_see_pictures_that_there_are(run: "RunSettings") -> Misfit:
    """Pictures that the policy started from are shown where prompts have any."""
    own = run.rewards.get("edit_reward")
    if own and not (own.function or own.scorer or own.url or own.judge or run.prompts.picture_column):
        yield "rewards.edit_reward compares with the pictures of prompts, and prompts.picture_column is null"
    for name, reward in run.rewards.items():
        if reward.judge and reward.judge.sources and not run.prompts.picture_column:
            yield f"rewards.{name}.judge.sources is true, and prompts.picture_column is null: there is nothing to show"


def compared_leaves_come_together(run: "RunSettings") -> Misfit:
    """A reward that compares the leaves of a tree gets all of them in one request."""
    leaves, trees = run.schedule.build().leaves, min(run.rollout.trees_per_task, run.prompts.per_iteration)
    for name in (name for name, reward in run.rewards.items() if reward.compares):
        reason = f"rewards.{name}.judge.opponents compares the {leaves} leaves of a tree, which must be scored together"
        if automatic := {"rollout.trees_per_task", "rollout.max_batch_rows"} & {*run.automatic}:
            yield f"{reason}; give a number for {min(automatic)}, which is auto"
        if run.rollout.max_batch_rows < trees * leaves:
            yield (
                f"{reason}; rollout.max_batch_rows is {run.rollout.max_batch_rows}: it must be at least "
                f"{trees * leaves}, the leaves of a task's {trees} trees (rollout.trees_per_task)"
            )
        if (most := run.pools.of_reward(name).batch_pictures) < leaves:
            yield f"{reason}; pools.rewards.{name}.batch_pictures is {most}: it must be at least {leaves}"


def comparisons_score_no_evaluation(run: "RunSettings") -> Misfit:
    """A reward that compares the leaves of a tree gives every evaluation the same score."""
    best, compared = run.checkpoint.keep_best, [name for name, reward in run.rewards.items() if reward.compares]
    if only := [name for name in run.evaluation.rewards if name in compared]:
        yield f"evaluation.rewards has '{only[0]}', which compares the leaves of a tree; evaluations have no trees"
    if best and {best.reward or name for name, own in run.rewards.items() if own.weight} <= {*compared}:
        yield (
            f"checkpoint.keep_best chooses by '{best.reward or compared[0]}', which compares the leaves of a tree, and "
            "gives all evaluations 0.5; name another reward (checkpoint.keep_best.reward)"
        )


def clips_are_rated_where_there_are_any(run: "RunSettings") -> Misfit:
    """VideoAlign rates motion."""
    for name, reward in run.rewards.items():
        own = reward.function or reward.scorer or reward.url or reward.judge
        if name.startswith("video_align") and not own and run.policy.frames < 2:
            yield f"rewards.{name} scores clips of two frames or more, and policy.frames is {run.policy.frames}"


def latents_are_read_by_own_code(run: "RunSettings") -> Misfit:
    """Built-in rewards and judges look at pictures, or listen."""
    for name, reward in run.rewards.items():
        if reward.reads == "latents" and not (reward.function or reward.scorer or reward.url):
            yield f"rewards.{name}.reads is 'latents', which needs a function, scorer or url; leave it 'media'"


def environments_need_processes_of_their_own(run: "RunSettings") -> Misfit:
    """A reward has another environment only where it has processes."""
    for name, pool in run.pools.rewards.items():
        if run.execution == "in_process" and pool.runtime_env != type(pool.runtime_env)():
            yield (
                f"pools.rewards.{name}.runtime_env is set with execution 'in_process', where one process does all; "
                "use execution 'ray'"
            )


def evaluations_score_held_out_rewards(run: "RunSettings") -> Misfit:
    """Rewards for evaluations only are rewards of the recipe that aren't trained on."""
    for name in run.evaluation.rewards:
        if name not in run.rewards or run.rewards[name].weight:
            yield (
                f"evaluation.rewards has '{name}'; what evaluations alone score must be one of the rewards, with "
                f"weight 0 ({', '.join(n for n, own in run.rewards.items() if not own.weight) or 'none has it'})"
            )


def the_best_is_known(run: "RunSettings") -> Misfit:
    """The best checkpoints are chosen by evaluations of a reward that the recipe has."""
    best = run.checkpoint.keep_best
    if best and best.reward is not None and best.reward not in run.rewards:
        yield f"checkpoint.keep_best.reward is '{best.reward}'; it must be one of {', '.join(run.rewards)}"
    if best and (not run.evaluation.every or not (run.prompts.held_out or run.prompts.held_out_count)):
        yield (
            "checkpoint.keep_best chooses by evaluations; give evaluation.every (now "
            f"{run.evaluation.every}) and held-out prompts (prompts.held_out or prompts.held_out_count)"
        )
    if run.evaluation.undo_falls and not best:
        yield "evaluation.undo_falls returns to the best checkpoint; give checkpoint.keep_best, such as {}"


def a_lora_is_trained_as_one(run: "RunSettings") -> Misfit:
    """A LoRA that is trained further needs the settings of one."""
    start = run.policy.start_from
    if start and start.lora == "train" and run.learner.lora is None:
        yield "policy.start_from.lora is 'train' and learner.lora is null; give its rank and alpha"


def graphs_stay_in_one_process(run: "RunSettings") -> Misfit:
    """Kept graphs need one process that samples and learns, and one pass of each over every edge."""
    learner, in_process = run.learner, run.execution == "in_process"
    if not learner.keep_graph:
        return
    needs = (
        (learner.updates_per_iteration == 1, f"learner.updates_per_iteration is {learner.updates_per_iteration}"),
        (learner.passes == 1, f"learner.passes is {learner.passes}"),
        (in_process or run.placement == "colocated", f"placement is '{run.placement}'"),
        (in_process or run.pools.learner.count == 1, f"pools.learner.count is {run.pools.learner.count}"),
        (learner.zero_stage < 3, f"learner.zero_stage is {learner.zero_stage}"),
        (not learner.gradient_checkpointing, "learner.gradient_checkpointing is on"),
        (not run.pruning.depth and not run.pruning.width, "pruning is on"),
    )
    for fits, misfit in needs:
        if not fits:
            yield (
                "learner.keep_graph needs one process that samples and learns (execution 'in_process', or 'colocated' "
                f"with one rank), one update per iteration of one pass, ZeRO below 3, no checkpointing, no pruning; "
                f"{misfit}"
            )


def some_step_is_trained(run: "RunSettings") -> Misfit:
    """At least one edge of a tree is trained, unless leaves alone are learned from."""
    if not run.learner.learns_from_leaves and not run.schedule.build().trained_edges:
        yield "schedule trains no step: give more steps, or splits, or sde_steps"


def leaves_are_learned_from_alone(run: "RunSettings") -> Misfit:
    """Objectives of leaves know neither edges nor a reference, and keep the old policy's weights whole."""
    learner = run.learner
    if not learner.learns_from_leaves:
        return
    needs = (
        (learner.kl_weight == 0, f"learner.kl_weight is {learner.kl_weight}"),
        (learner.trust_region == "clip", f"learner.trust_region is '{learner.trust_region}'"),
        (not learner.keep_graph, "learner.keep_graph is on"),
        (not run.pruning.depth and not run.pruning.width, "pruning is on"),
        (learner.zero_stage < 3, f"learner.zero_stage is {learner.zero_stage}"),
        (run.staleness == 0, f"staleness is {run.staleness}"),
        (
            not learner.nft.old_decay or run.execution == "in_process" or run.placement == "separate",
            f"placement is '{run.placement}' with learner.nft.old_decay {learner.nft.old_decay}",
        ),
    )
    for fits, misfit in needs:
        if not fits:
            yield (
                f"learner.objective '{learner.objective}' needs kl_weight 0, trust_region 'clip', no kept graphs, no "
                f"pruning, ZeRO below 3, staleness 0 and, with old_decay on Ray, placement 'separate'; {misfit}"
            )


def the_scale_of_the_kl_is_known(run: "RunSettings") -> Misfit:
    """Flow-GRPO's KL leaves out a root of the step's length, which the noise of the kernels `cps` and `ddim` hasn't."""
    noisy = {step.kernel for step in run.schedule.build().steps if step.stochastic}
    if run.learner.kl_scale == "flow_grpo" and (other := sorted(noisy - {"flow", "dance"})):
        yield f"learner.kl_scale is 'flow_grpo' with the kernel '{other[0]}'; use 'exact', or the kernel flow or dance"


def moves_are_told_from_exact_states(run: "RunSettings") -> Misfit:
    """A mean's move is told from the stored state and its noise, so rounding the state would be taken for a move."""
    if run.learner.trust_region != "clip" and run.rollout.latents_precision != "float32":
        yield (
            f"learner.trust_region is '{run.learner.trust_region}' with rollout.latents_precision "
            f"'{run.rollout.latents_precision}'; use 'float32', or trust_region 'clip'"
        )


def pruning_leaves_some_depths(run: "RunSettings") -> Misfit:
    """The window of depth pruning lies among the trained depths, leaves some of them, and has room to slide."""
    if not (depth := run.pruning.depth):
        return
    schedule = run.schedule.build()
    if depth.window >= len(schedule.trained_depths):
        yield (
            f"pruning.depth.window is {depth.window} of {len(schedule.trained_depths)} trained depths; it must leave "
            "some"
        )
        return
    for iteration in range(depth.first_iteration, min(depth.last_iteration or run.iterations, run.iterations) + 1):
        now = run.schedule.build(iteration, run.seed)
        first = depth.first(now, iteration)
        if all(first <= now.levels[trained] < first + depth.window for trained in now.trained_depths):
            yield (
                f"pruning.depth.window is {depth.window}, and in iteration {iteration} it leaves none of the "
                f"{len(now.trained_depths)} trained depths; it must leave some in every iteration"
            )
            break
    if depth.start is not None and depth.start >= schedule.grid_steps:
        yield (
            f"pruning.depth.start is {depth.start}; of {schedule.grid_steps} steps the deepest edge that can be "
            f"trained leads to depth {schedule.grid_steps - 1}"
        )
    if depth.mode == "sliding" and depth.stop >= depth.deepest(schedule):
        yield (
            f"pruning.depth.stop is {depth.stop}, and the window begins at depth {depth.deepest(schedule)} at its "
            "deepest: it couldn't slide"
        )


def sampling_ahead_needs_workers(run: "RunSettings") -> Misfit:
    """Sampling an iteration ahead needs workers beside the learner."""
    if run.staleness and (run.execution, run.placement) != ("ray", "separate"):
        yield (
            f"staleness is 1 with execution '{run.execution}' and placement '{run.placement}'; sampling ahead needs "
            "execution 'ray' and placement 'separate'"
        )


def a_tree_has_leaves_to_compare(run: "RunSettings") -> Misfit:
    """A tree has at least two leaves, and an advantage compares some of them."""
    schedule = run.schedule.build()
    if schedule.leaves < 2:
        yield "schedule has one leaf; a tree needs at least two leaves (give roots, splits or a group)"
    if run.advantage.normaliser != "group" and schedule.leaves == schedule.roots:
        yield (
            f"advantage.normaliser is '{run.advantage.normaliser}' and the schedule doesn't split: every advantage "
            "would be 0; use 'group' or split somewhere"
        )


RULES: tuple[Callable[["RunSettings"], Misfit], ...] = (
    environments_need_processes_of_their_own,
    bfloat16_needs_float32_gradients,
    compiling_needs_whole_layers,
    offloading_needs_partitions,
    single_files_say_what_they_are,
    steps_are_as_many_as_their_levels,
    updates_divide_an_iteration,
    judges_see_pictures_that_there_are,
    compared_leaves_come_together,
    comparisons_score_no_evaluation,
    clips_are_rated_where_there_are_any,
    latents_are_read_by_own_code,
    evaluations_score_held_out_rewards,
    the_best_is_known,
    a_lora_is_trained_as_one,
    graphs_stay_in_one_process,
    some_step_is_trained,
    leaves_are_learned_from_alone,
    the_scale_of_the_kl_is_known,
    moves_are_told_from_exact_states,
    pruning_leaves_some_depths,
    sampling_ahead_needs_workers,
    a_tree_has_leaves_to_compare,
)
