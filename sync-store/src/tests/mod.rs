mod log;
mod world;
