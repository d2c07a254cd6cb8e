mod client;
mod log;
mod memory;
mod open;
mod purge;
mod random;
mod world;
mod write;
