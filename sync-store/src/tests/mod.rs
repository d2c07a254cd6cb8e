mod client;
mod log;
mod open;
mod purge;
mod random;
mod world;
mod write;
