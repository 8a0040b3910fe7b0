# what FAISS is compiled for; see .cargo/config.toml
add_compile_options(-mavx2 -mfma -mf16c -mpopcnt)
