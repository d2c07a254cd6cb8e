mod client;
mod log;
mod open;
mod random;
mod world;
mod write;
