"""What the text of generated code says of its allocations. The code here is made up, in Inductor's form."""

from __future__ import annotations

import ast

from vramkit.torch_internals.generated_code import Owners, is_backward, marked, plan_of

CODE = """# AOT ID: ['0_forward']
# Topologically Sorted Source Nodes: [a, b], Original ATen: [aten.relu, aten.add]
# Source node to ATen node mapping:
#   a => relu
#   b => add_1
# Graph fragment:
#   %relu : Tensor "f32[4, 8][8, 1]cuda:0"[num_users=2] = call_function[target=relu](args = (%mm,), kwargs = {})
#   %add_1 : Tensor "f32[4, 8][8, 1]cuda:0"[num_users=1] = call_function[target=add](args = (%relu, 1), kwargs = {})
#   %half : Tensor "f16[4, 8][8, 1]cuda:0"[num_users=1] = call_function[target=half](args = (%add_1,), kwargs = {})
#   return %relu,%add_1,%half
fused_0 = async_compile.triton('fused_0', \'\'\'
def fused_0(): pass
\'\'\', device_str='cuda')

class Runner:
    def call(self, args):
        x, = args
        args.clear()
        with torch.cuda._DeviceGuard(0):
            buf0 = empty_strided_cuda((4, 8), (8, 1), torch.float32)
            # Topologically Sorted Source Nodes: [w, linear], Original ATen: [aten.t, aten.mm]
            extern_kernels.mm(x, x, out=buf0)
            buf1 = empty_strided_cuda((4, 8), (8, 1), torch.float32)
            buf2 = empty_strided_cuda((4, 8), (8, 1), torch.float32)
            buf3 = empty_strided_cuda((4, 8), (8, 1), torch.float16)
            # Topologically Sorted Source Nodes: [a, b], Original ATen: [aten.relu, aten.add]
            fused_0.run(buf0, buf1, buf2, buf3, 32)
            del buf0
            buf4 = empty_strided_cuda((4, 8), (8, 1), torch.float32)
            buf5 = buf1; del buf1  # reuse
            buf6 = empty_strided_cuda((4, 8), (8, 1), torch.float16)
            # Topologically Sorted Source Nodes: [c, d], Original ATen: [aten.relu, aten.add]
            fused_0.run(buf2, buf4, buf5, buf6, 32)
            buf7 = empty_strided_cuda((4, 8), (8, 1), torch.float32)
            # Topologically Sorted Source Nodes: [e, f], Original ATen: [aten.relu, aten.add]
            fused_0.run(buf2, buf7, 32)
            helper(buf7)
        return (buf2, buf5, )
"""


def made(code: str) -> dict[str, Owners]:
    """Whose what each statement allocates is, for the statements that a plan names."""
    plan, lines = plan_of(code), code.splitlines()
    found = {}
    for line, number in plan.before["call"].items():
        found[lines[line - 1].strip().partition(" = ")[0]] = plan.owners[number] if number >= 0 else ()
    return found


def first(owners: Owners) -> set[tuple[str, ...]]:
    """Of each module that it may be the nodes that are asked first."""
    return {next(names for names in each if names) for each in owners}


def test_an_operator_is_the_last_of_the_nodes_in_its_comment() -> None:
    assert first(made(CODE)["buf0"]) == {("linear",)}


def test_each_buffer_of_a_fused_kernel_is_of_the_node_whose_value_it_gets() -> None:
    found = made(CODE)

    assert first(found["buf2"]) == {("b",)}
    assert first(found["buf3"]) == {("b",)}  # the half that no node of Dynamo's made: of what it is computed from


def test_memory_that_leaves_the_graph_is_of_the_value_that_it_has_then() -> None:
    assert first(made(CODE)["buf1"]) == {("d",)}  # reused for a value of the second call


def test_a_kernel_that_is_used_again_has_the_nodes_of_its_own_call() -> None:
    assert first(made(CODE)["buf4"]) == {("c",)}


def test_a_buffer_that_may_be_of_either_of_two_values_is_of_both() -> None:
    assert first(made(CODE)["buf7"]) == {("e",), ("f",)}


def test_what_is_called_without_a_comment_is_nobodys() -> None:
    found = made(CODE)

    assert found["helper(buf7)"] == ()


def test_a_marked_function_has_the_same_statements_at_the_same_lines() -> None:
    plan = plan_of(CODE)
    copies = dict(marked(CODE, "code.py", plan, "enter", "part"))
    function = copies["call"].body[0]
    plain = next(
        each for each in ast.walk(ast.parse(CODE)) if isinstance(each, ast.FunctionDef) and each.name == "call"
    )

    def statements(of: ast.AST) -> list[tuple[int, str]]:
        found = [each for each in ast.walk(of) if isinstance(each, (ast.Assign, ast.Expr, ast.Delete, ast.Return))]
        return sorted((each.lineno, ast.unparse(each)) for each in found)

    calls = [each for each in statements(function) if each[1].startswith(("enter(", "part("))]
    assert calls[0][1] == "enter()"
    assert len(calls) == 1 + len(plan.before["call"])
    assert sorted(set(statements(function)) - set(calls)) == statements(plain)


def test_a_backward_is_told_by_its_first_line() -> None:
    assert is_backward(CODE.replace("0_forward", "3_backward"))
    assert not is_backward(CODE)
