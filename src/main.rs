fn main() {
    eprintln!("freshet {}: the stages are under construction", env!("CARGO_PKG_VERSION"));
    std::process::exit(2);
}
