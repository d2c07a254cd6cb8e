# Shared by the scripts that build simulated worlds.

# Which of several waiting tasks tokio wakes first is chance. This flag lets the seed decide it, so that a seed can be told
# again. It is for simulations only, so they have a folder of their own to be built in.
export RUSTFLAGS="--cfg tokio_unstable"
export CARGO_TARGET_DIR="$PWD/target/simulate"
