/* Stands in for torch's libtorch_cpu.so at link time: only its SONAME is recorded, so that the op
   library loads into whichever torch is installed. */
