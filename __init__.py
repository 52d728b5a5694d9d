"""BranchGRPO: aligns diffusion and flow models with reward models by branching rollouts."""

__version__ = "0.1.0"
