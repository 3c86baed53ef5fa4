"""The count of a loop's instructions, on code that was written by hand."""

from cuda_build.hot_loops import Listing, Loop

CODE = """
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   FADD R1, R1, R2 ;
        /*0040*/                   FADD R1, R1, R2 ;
        /*0050*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0060*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0070*/                   FMUL R1, R1, R2 ;
.L_x_2:
        /*0080*/              @P1  BRA `(.L_x_3) ;
        /*0090*/                   FMUL R1, R1, R2 ;
.L_x_3:
        /*00a0*/              @P2  BRA `(.L_x_0) ;
.L_x_4:
        /*00b0*/              @P3  BRA `(.L_x_4) ;
        /*00c0*/                   EXIT ;
"""


def test_counts_the_shortest_way_that_meets_every_matrix_instruction():
    # Neither the way around the second of them nor the multiplication that can be skipped.
    assert list(Listing.of(CODE).loops()) == [Loop(1, 10, 2, 8)]
