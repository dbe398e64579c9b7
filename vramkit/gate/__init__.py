"""What a program may take: a limit, and the memory that it took before. Knows results and files; runs nothing."""
